use longshore_proto::protobuf;
use reapi::command::EnvironmentVariable;
use tonic::Code;

use super::*;

fn options(timeout_default: Option<u64>, timeout_max: Option<u64>) -> ActionOptions {
    ActionOptions {
        timeout_default: timeout_default.map(Duration::from_secs),
        timeout_max: timeout_max.map(Duration::from_secs),
        ..ActionOptions::default()
    }
}

fn parse_timeout(wire: Option<(i64, i32)>, options: &ActionOptions) -> Result<Option<Duration>, Failure> {
    let digest = Some(DigestFunction::Sha256.digest(b"x").to_wire());
    let action = reapi::Action {
        command_digest: digest.clone(),
        input_root_digest: digest,
        timeout: wire.map(|(seconds, nanos)| protobuf::Duration { seconds, nanos }),
        ..Default::default()
    };
    CheckedAction::parse(DigestFunction::Sha256, &action, options).map(|action| action.timeout)
}

fn command(arguments: &[&str]) -> reapi::Command {
    reapi::Command { arguments: arguments.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn with_variables(variables: &[(&str, &str)]) -> reapi::Command {
    let variable = |(name, value): &(&str, &str)| EnvironmentVariable {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    };
    reapi::Command { environment_variables: variables.iter().map(variable).collect(), ..command(&["true"]) }
}

fn code(command: &reapi::Command) -> Code {
    CheckedCommand::parse(command).unwrap_err().code()
}

// ACT-04, ACT-05, ACT-06, ACT-07.
#[test]
fn timeouts_are_taken_literally() {
    let options = options(Some(60), Some(100));
    assert_eq!(parse_timeout(None, &options), Ok(Some(Duration::from_mins(1))));
    assert_eq!(parse_timeout(Some((0, 0)), &options), Ok(Some(Duration::ZERO)));
    assert_eq!(parse_timeout(Some((100, 0)), &options), Ok(Some(Duration::from_secs(100))));
    for wire in [(100, 1), (-1, 0), (0, -1), (1, 1_000_000_000), (1, -1)] {
        assert_eq!(
            parse_timeout(Some(wire), &options).unwrap_err().code(),
            Code::InvalidArgument,
            "{wire:?}"
        );
    }
}

// DIG-06: an absent digest is not the empty blob's.
#[test]
fn digests_must_be_there() {
    let digest = Some(DigestFunction::Sha256.digest(b"x").to_wire());
    let complete =
        reapi::Action { command_digest: digest.clone(), input_root_digest: digest, ..Default::default() };
    let parse = |action| CheckedAction::parse(DigestFunction::Sha256, &action, &ActionOptions::default());
    assert!(parse(complete.clone()).is_ok());
    let error = parse(reapi::Action { command_digest: None, ..complete.clone() }).unwrap_err();
    assert!(error.message().contains("command_digest"), "{error:?}");
    let error = parse(reapi::Action { input_root_digest: None, ..complete }).unwrap_err();
    assert!(error.message().contains("input_root_digest"), "{error:?}");
}

// CMD-01, CMD-08, CMD-09.
#[test]
fn arguments_are_bytes_and_not_shell() {
    let odd = ["", " a b ", "'$x'", "-\n", "é"];
    let checked = CheckedCommand::parse(&command(&odd)).unwrap();
    let bytes: Vec<_> = checked.arguments.iter().map(|argument| argument.to_bytes()).collect();
    assert_eq!(bytes, odd.map(str::as_bytes));
    assert_eq!(code(&command(&[])), Code::InvalidArgument);
    assert_eq!(code(&command(&["a\0b"])), Code::InvalidArgument);
}

// CMD-10, CMD-13.
#[test]
fn the_environment_is_exactly_the_commands() {
    let checked =
        CheckedCommand::parse(&with_variables(&[("B", "1"), ("A", "x=y"), ("B", ""), ("A B", "2")])).unwrap();
    let texts: Vec<_> = checked.environment.iter().map(|text| text.to_str().unwrap()).collect();
    assert_eq!(texts, ["A=x=y", "A B=2", "B="]);
    for variable in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0")] {
        assert_eq!(code(&with_variables(&[variable])), Code::InvalidArgument, "{variable:?}");
    }
}

// CMD-14, CMD-16.
#[test]
fn the_working_directory_stays_inside() {
    let parse = |path: &str| {
        let command = reapi::Command { working_directory: path.to_owned(), ..command(&["true"]) };
        CheckedCommand::parse(&command).map(|command| command.working_directory.as_str().to_owned())
    };
    assert_eq!(parse("").unwrap(), "");
    assert_eq!(parse("a/../b/").unwrap(), "b");
    for path in ["/", "/tmp", "..", "a/../../b"] {
        assert_eq!(parse(path).unwrap_err().code(), Code::InvalidArgument, "{path:?}");
    }
}

// CMD-15, OUT-13: the working directory is made if the tree lacks it, as are the outputs' parents.
#[test]
fn the_directories_to_make_are_listed_once() {
    let command = reapi::Command {
        working_directory: "w".to_owned(),
        output_paths: ["x/out", "out", "x/y/out"].map(str::to_owned).to_vec(),
        ..command(&["true"])
    };
    let directories = CheckedCommand::parse(&command).unwrap().directories();
    let directories: Vec<_> = directories.iter().map(RelPath::as_str).collect();
    assert_eq!(directories, ["w", "w/x", "w/x/y"]);
}

#[test]
fn the_platform_is_told_unless_the_command_sets_the_variable() {
    let property = |name: &str, value: &str| reapi::platform::Property {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let platform =
        reapi::Platform { properties: vec![property("ISA", "x86-64"), property("OSFamily", "Linux")] };
    let variable =
        |name: &str, value: &str| EnvironmentVariable { name: name.to_owned(), value: value.to_owned() };
    let told = |variables| {
        let command = reapi::Command {
            arguments: vec!["true".to_owned()],
            environment_variables: variables,
            ..Default::default()
        };
        let mut command = CheckedCommand::parse(&command).unwrap();
        command.tell_platform("PLATFORM", &platform).unwrap();
        command.environment
    };
    assert_eq!(
        told(vec![variable("Z", "1")]),
        [c"PLATFORM=ISA=x86-64,OSFamily=Linux".into(), c"Z=1".to_owned()]
    );
    assert_eq!(told(vec![variable("PLATFORM", "mine")]), [c"PLATFORM=mine".to_owned()]);
}
