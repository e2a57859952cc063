//! What a platform asks of the machine: the names of REAPI's lexicon (`platform.md`) that longshore understands.
//!
//! It deliberately knows no other name: those tell the workers of other services apart, and mean nothing here.

use longshore_proto::reapi;
use tonic::Code;

use crate::status::Failure;

const OS_FAMILY: &str = "linux";
/// The instruction sets that this machine executes.
#[cfg(target_arch = "x86_64")]
const ISAS: [&str; 2] = ["x86-64", "x86-32"];
#[cfg(target_arch = "aarch64")]
const ISAS: [&str; 1] = ["arm-a64"];

/// The platform that counts, and the message that it is in: the Action's if it has one, else its Command's.
pub(super) fn choose(
    of_action: Option<reapi::Platform>,
    command: &reapi::Command,
) -> (&'static str, reapi::Platform) {
    #[expect(deprecated, reason = "clients from before REAPI 2.2 set the Command's platform alone")]
    let of_command = command.platform.as_ref();
    match (of_action, of_command) {
        (Some(platform), _) => ("Action", platform),
        (None, Some(platform)) => ("Command", platform.clone()),
        (None, None) => ("Action", reapi::Platform::default()),
    }
}

/// Whether this machine is what the platform of `message` asks for. Every property has to hold.
pub(super) fn check(message: &str, platform: &reapi::Platform) -> Result<(), Failure> {
    for reapi::platform::Property { name, value } in &platform.properties {
        let (holds, own) = match name.as_str() {
            // Configurations for some services have it capitalised.
            "OSFamily" => (value.eq_ignore_ascii_case(OS_FAMILY), OS_FAMILY),
            "ISA" => (ISAS.contains(&value.as_str()), ISAS[0]),
            _ => continue,
        };
        if !holds {
            let message = format!("{message}.platform: {name} is {value:?}, and here it is {own:?}");
            return Err(Failure::new(Code::FailedPrecondition, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every property counts, not only the first or the last of a name.
    #[test]
    fn every_property_has_to_hold() {
        let own = ISAS[0];
        let cases = [
            (vec![], true),
            (vec![("OSFamily", "linux"), ("ISA", own)], true),
            (vec![("Pool", "any"), ("", "")], true),
            (vec![("ISA", own), ("ISA", "sparc-v9")], false),
            (vec![("ISA", "sparc-v9"), ("ISA", own)], false),
            (vec![("OSFamily", "windows"), ("ISA", own)], false),
        ];
        for (properties, holds) in cases {
            let property = |(name, value): &(&str, &str)| reapi::platform::Property {
                name: (*name).to_owned(),
                value: (*value).to_owned(),
            };
            let platform = reapi::Platform { properties: properties.iter().map(property).collect() };
            assert_eq!(check("Action", &platform).is_ok(), holds, "{properties:?}");
        }
    }
}
