//! Messages in protobuf's text form, as other tools write them for people to change.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::reapi;

/// Names and numbers of fields, from `text/`.
static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let set = include_bytes!(concat!(env!("OUT_DIR"), "/text.bin"));
    DescriptorPool::decode(set.as_slice()).expect("what the build wrote")
});

/// Reads an `Action`.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn action(text: &str) -> Result<reapi::Action, String> {
    parse("build.bazel.remote.execution.v2.Action", text)
}

/// Reads a `Command`.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn command(text: &str) -> Result<reapi::Command, String> {
    parse("build.bazel.remote.execution.v2.Command", text)
}

fn parse<M: Message + Default>(name: &str, text: &str) -> Result<M, String> {
    let descriptor = DESCRIPTORS.get_message_by_name(name).expect("text/ has it");
    let message = DynamicMessage::parse_text_format(descriptor, text).map_err(|error| error.to_string())?;
    M::decode(message.encode_to_vec().as_slice()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf;

    // Every field, so that a number that is wrong in text/ is noticed.
    #[test]
    fn every_field_is_read() {
        let text = r#"
            command_digest: { hash: "aa"  size_bytes: 1 }
            input_root_digest { hash: "bb" size_bytes: 2 }
            timeout { seconds: 3 nanos: 4 } do_not_cache: true  salt: "\x05"
            platform { properties { name: "n" value: "v" } }  # a remark
        "#;
        let property = reapi::platform::Property { name: "n".to_owned(), value: "v".to_owned() };
        let platform = Some(reapi::Platform { properties: vec![property] });
        let expected = reapi::Action {
            command_digest: Some(reapi::Digest { hash: "aa".to_owned(), size_bytes: 1 }),
            input_root_digest: Some(reapi::Digest { hash: "bb".to_owned(), size_bytes: 2 }),
            timeout: Some(protobuf::Duration { seconds: 3, nanos: 4 }),
            do_not_cache: true,
            salt: vec![5],
            platform: platform.clone(),
        };
        assert_eq!(action(text), Ok(expected));

        let text = r#"
            arguments: "a" arguments: "b c"
            environment_variables { name: "N" value: "V" }
            output_files: "f" output_directories: "d" output_paths: ["p", "q"]
            platform { properties { name: "n" value: "v" } }
            working_directory: "w" output_node_properties: "mtime" output_directory_format: DIRECTORY_ONLY
        "#;
        let variable = reapi::command::EnvironmentVariable { name: "N".to_owned(), value: "V".to_owned() };
        #[expect(deprecated, reason = "older clients still say where outputs are in these fields")]
        let expected = reapi::Command {
            arguments: vec!["a".to_owned(), "b c".to_owned()],
            environment_variables: vec![variable],
            output_files: vec!["f".to_owned()],
            output_directories: vec!["d".to_owned()],
            output_paths: vec!["p".to_owned(), "q".to_owned()],
            platform,
            working_directory: "w".to_owned(),
            output_node_properties: vec!["mtime".to_owned()],
            output_directory_format: reapi::command::OutputDirectoryFormat::DirectoryOnly.into(),
        };
        assert_eq!(command(text), Ok(expected));
    }

    #[test]
    fn nothing_is_an_empty_message_and_what_is_unknown_is_named() {
        assert_eq!(action(""), Ok(reapi::Action::default()));
        let error = command("argument: \"a\"").unwrap_err();
        assert!(error.contains("argument"), "{error}");
    }
}
