//! Commands: the program, its arguments, its environment, its working directory, and what it is born with.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_proto::{Message as _, reapi};
use longshore_tests::action::TestAction;
use longshore_tests::longshore::Longshore;
use longshore_tests::process::foreign_descendants;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{declaring, run, run_by};
use crate::support::{execute, put_message, shared_client, succeeded};

/// What an action that succeeds prints.
async fn stdout_of(action: &TestAction) -> Result<String> {
    let ran = run(action).await?;
    ran.client.stdout(ran.result().await?).await
}

/// An action that is refused as the client's fault, which no retry can help: with these texts in the message.
async fn is_refused(action: &TestAction, texts: &[&str]) -> Result<()> {
    let ran = run(action).await?;
    ran.failed_with(Code::InvalidArgument, texts)?;
    ensure!(ran.status().details.is_empty(), "{:?}", ran.status());
    ensure!(ran.any_result()?.exit_code != 0, "a client that looks at nothing else must not read success");
    Ok(())
}

/// A script that says where it stands.
fn says(word: &str) -> String {
    format!("#!/bin/sh\necho {word}\n")
}

fn within(directory: &str, mut action: TestAction) -> TestAction {
    directory.clone_into(&mut action.command.working_directory);
    action
}

/// The action with its variables exactly as given: neither sorted nor distinct.
fn with_variables(mut action: TestAction, variables: &[(&str, &str)]) -> TestAction {
    let variable = |(name, value): &(&str, &str)| reapi::command::EnvironmentVariable {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    };
    action.command.environment_variables = variables.iter().map(variable).collect();
    action
}

/// A Command without arguments is `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmd_01() -> Result<()> {
    is_refused(&TestAction::new(Vec::<String>::new()), &["Command.arguments", "empty"]).await?;
    // An argument that is empty is one, but names no program.
    is_refused(&TestAction::new([""]), &["Command.arguments[0]", "\"\""]).await?;
    is_refused(&TestAction::new([""]).environment("PATH", "/bin"), &["Command.arguments[0]"]).await
}

/// An absolute program is that one, wherever the command runs.
#[tokio::test]
async fn cmd_02() -> Result<()> {
    let inputs = InputTree::new().executable("bin/echo", says("mine")).executable("d/bin/echo", says("mine"));
    for directory in ["", "d"] {
        let action =
            TestAction::new(["/bin/echo", "theirs"]).inputs(inputs.clone()).environment("PATH", "bin");
        ensure!(stdout_of(&within(directory, action)).await? == "theirs\n");
    }
    is_refused(&TestAction::new(["/d/bin/echo"]).inputs(inputs), &["/d/bin/echo", "No such file"]).await
}

/// A relative program with a slash counts from the working directory.
#[tokio::test]
async fn cmd_03() -> Result<()> {
    let inputs = InputTree::new()
        .executable("tool", says("root"))
        .executable("d/tool", says("d"))
        .executable("d/e/tool", says("e"))
        .symlink("d/link", "../tool");
    // A search path changes nothing.
    let action = |program: &str| TestAction::new([program]).inputs(inputs.clone()).environment("PATH", "d/e");
    for (directory, program, word) in [
        ("", "./tool", "root"),
        ("", "d/tool", "d"),
        ("d", "./tool", "d"),
        ("d", "e/tool", "e"),
        ("d", "../tool", "root"),
        ("d/e", "../../d//./tool", "d"),
        ("d", "./link", "root"),
        ("new/folder", "../../tool", "root"),
    ] {
        let stdout = stdout_of(&within(directory, action(program))).await?;
        ensure!(stdout.trim_end() == word, "{program} in {directory:?} is {stdout:?}");
    }
    // What is there from the input root only is not there.
    is_refused(&within("d", action("d/tool")), &["Command.arguments[0]", "d/tool"]).await?;
    is_refused(&action("tool/"), &["Command.arguments[0]", "tool/"]).await
}

/// A program without a slash is looked up in the Command's `PATH`, whose relative folders count from the working
/// directory; not found is `INVALID_ARGUMENT`.
/// Deviation: where the search path has none, the working directory is looked at last, because Bazel's repository rules
/// name scripts of their input root so.
#[tokio::test]
async fn cmd_04() -> Result<()> {
    let inputs = InputTree::new()
        .executable("first/tool", says("first"))
        .executable("second/tool", says("second"))
        .executable("w/first/tool", says("below"))
        .executable("here", says("here"))
        .executable("w/tool", says("w"))
        .file("plain/tool", says("plain"))
        .directory("folder/tool")
        .symlink("loop/tool", "tool")
        .file("file", "no folder");
    let long = format!("{}:second", "x".repeat(5000));
    let action = |path: &str| TestAction::new(["tool"]).inputs(inputs.clone()).environment("PATH", path);
    for (directory, path, word) in [
        ("", "first:second", "first"),
        ("", "second:first", "second"),
        ("w", "first:second", "below"),
        ("w", "../second", "second"),
        ("", "missing:second", "second"),
        ("", "file:second", "second"),
        ("", "plain:second", "second"),
        ("", "folder:second", "second"),
        ("", "loop:second", "second"),
        ("", &long, "second"),
        ("", "/usr/bin:first", "first"),
        ("w", ":first", "w"),
        ("w", ".:first", "w"),
        ("w", "", "w"),
    ] {
        let stdout = stdout_of(&within(directory, action(path))).await?;
        ensure!(stdout.trim_end() == word, "PATH={path} in {directory:?} is {stdout:?}");
    }
    for path in ["missing", "/usr/bin:/bin", "plain", "folder", "loop", "file"] {
        is_refused(&action(path), &["Command.arguments[0]", "\"tool\""]).await?;
    }
    // It is the Command's own PATH: nothing is found beside it.
    let action = TestAction::new(["true"]).inputs(inputs.clone()).environment("PATH", "first");
    is_refused(&action, &["Command.arguments[0]", "\"true\""]).await?;
    let action = TestAction::new(["here"]).inputs(inputs).environment("PATH", "/usr/bin:/bin");
    ensure!(stdout_of(&action).await? == "here\n");
    Ok(())
}

/// Without `PATH` a program is looked up in `/usr/local/bin:/usr/bin:/bin`, which the command does not see.
#[tokio::test]
async fn cmd_05() -> Result<()> {
    ensure!(stdout_of(&TestAction::new(["env"])).await? == "");
    ensure!(stdout_of(&TestAction::new(["printf", "%s", "found"])).await? == "found");
    is_refused(&TestAction::new(["no-such-program"]), &["Command.arguments[0]", "no-such-program"]).await
}

/// The smallest ELF file whose interpreter's name lies beyond its end.
fn truncated_program() -> Vec<u8> {
    const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let header_len: u16 = 64;
    let segment_len: u16 = 56;
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [3, MACHINE] {
        program.extend(half.to_le_bytes());
    }
    program.extend(1_u32.to_le_bytes());
    for word in [0, u64::from(header_len), 0] {
        program.extend(word.to_le_bytes());
    }
    program.extend(0_u32.to_le_bytes());
    for half in [header_len, segment_len, 1, 0, 0, 0] {
        program.extend(half.to_le_bytes());
    }
    // PT_INTERP, readable, 32 bytes far behind the end.
    for word in [3_u32, 4] {
        program.extend(word.to_le_bytes());
    }
    for word in [1_u64 << 20, 0, 0, 32, 32, 1] {
        program.extend(word.to_le_bytes());
    }
    program
}

/// What cannot be executed is `INVALID_ARGUMENT`, with the program and the reason; never a fault of the worker's.
#[tokio::test]
async fn cmd_06() -> Result<()> {
    let inputs = InputTree::new()
        .executable("garbage", "\u{0}\u{1}no program")
        .executable("nothing", "")
        .executable("text", "no interpreter line\n")
        .executable("elf", "\u{7f}ELF")
        .executable("truncated", truncated_program())
        .executable("bad_interpreter", "#!/no/such/interpreter\n")
        .executable("no_interpreter", "#!\n")
        .executable("folder_as_interpreter", "#!/usr\n")
        .file("plain", says("plain"))
        .directory("folder")
        .symlink("dangling", "nowhere")
        .symlink("loop", "loop")
        .symlink("to_folder", "folder");
    let long = format!("./{}", "x".repeat(256));
    for (program, reason) in [
        ("./absent", "No such file"),
        ("absent/program", "No such file"),
        ("/no/such/program", "No such file"),
        ("./bad_interpreter", "No such file"),
        ("./dangling", "No such file"),
        ("./plain/program", "Not a directory"),
        ("./plain", "Permission denied"),
        ("/dev/null", "Permission denied"),
        ("/etc/passwd", "Permission denied"),
        ("./folder_as_interpreter", "Permission denied"),
        ("./folder", "Is a directory"),
        ("./to_folder", "Is a directory"),
        ("/", "Is a directory"),
        (".", ""),
        ("..", ""),
        ("./garbage", "Exec format error"),
        ("./nothing", "Exec format error"),
        ("./text", "Exec format error"),
        ("./elf", "Exec format error"),
        ("./no_interpreter", "Exec format error"),
        ("./truncated", ""),
        ("./loop", "symbolic links"),
        (&long, "too long"),
    ] {
        let action = TestAction::new([program]).environment("PATH", "/usr/bin:/bin").inputs(inputs.clone());
        is_refused(&action, &["Command.arguments[0]", &program[..program.len().min(100)], reason])
            .await
            .with_context(|| program.to_owned())?;
    }
    Ok(())
}

/// Arguments and variables that are too long together, or one alone, are `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmd_07() -> Result<()> {
    // The kernel's bound of one string, its end included (MAX_ARG_STRLEN).
    const STRING_LEN_MAX: usize = 128 << 10;
    let counted = |argument: String| TestAction::new(["/bin/sh", "-c", "echo ${#1}", "sh", &argument]);
    let longest = "x".repeat(STRING_LEN_MAX - 1);
    ensure!(stdout_of(&counted(longest.clone())).await? == format!("{}\n", longest.len()));
    let words = ["arguments", "environment", "too long"];
    is_refused(&counted(longest + "x"), &words).await?;
    let value = "x".repeat(STRING_LEN_MAX);
    is_refused(&TestAction::new(["/bin/true"]).environment("A", &value), &words).await?;
    let many = std::iter::once("/bin/true".to_owned()).chain((0..100_000).map(|i| format!("{i:0>100}")));
    is_refused(&TestAction::new(many), &words).await
}

/// Arguments arrive byte for byte: there is no shell.
#[tokio::test]
async fn cmd_08() -> Result<()> {
    let arguments = [
        "",
        " ",
        "a b",
        "a  b ",
        "'",
        "\"",
        "\\",
        "\\n",
        "\n",
        "\t\r\u{7}",
        "$HOME",
        "`id`",
        "$(id)",
        "*",
        "~",
        "-n",
        "--",
        "-rf",
        "a=b",
        "ünï ☃ \u{10ffff}",
        ";",
        "&",
        "|",
        "> out",
        "#",
        "%s",
        "",
        "",
    ];
    let mut all = vec!["/bin/sh", "-c", "cat /proc/$$/cmdline; :", "name"];
    all.extend(arguments);
    let stdout =
        stdout_of(&TestAction::new(all.iter().copied()).environment("PATH", "/usr/bin:/bin")).await?;
    let found: Vec<_> = stdout.strip_suffix('\0').context("an end")?.split('\0').collect();
    ensure!(found == all, "{found:?}");
    // The first one too, however it is found.
    let inputs = InputTree::new().executable("d/tool", "#!/bin/cat /proc/self/cmdline\n");
    let by_path = TestAction::new(["tool"]).inputs(inputs).environment("PATH", "d");
    ensure!(stdout_of(&by_path).await?.contains("\0d/tool\0"));
    let named = TestAction::new(["sh", "-c", "tr '\\0' '|' < /proc/$$/cmdline; :"]);
    ensure!(stdout_of(&named.environment("PATH", "/usr/bin:/bin")).await?.starts_with("sh|-c|"));
    Ok(())
}

/// A NUL byte in an argument or a variable is `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmd_09() -> Result<()> {
    is_refused(&TestAction::new(["/bin/true\0"]), &["Command.arguments", "NUL"]).await?;
    is_refused(&TestAction::new(["/bin/true", "a", "b\0c"]), &["Command.arguments", "b\\0c", "NUL"]).await?;
    for (name, value) in [("A\0B", "c"), ("A", "b\0"), ("A", "\0"), ("\0", "")] {
        let action = TestAction::new(["/bin/true"]).environment(name, value);
        is_refused(&action, &["Command.environment_variables", "NUL"]).await?;
    }
    let action = within("a\0b", TestAction::new(["/bin/true"]));
    is_refused(&action, &["Command.working_directory", "NUL"]).await
}

/// Variables are set exactly, whatever is in them.
#[tokio::test]
async fn cmd_10() -> Result<()> {
    let variables = [
        ("A", "1"),
        ("B", ""),
        ("C", "a=b"),
        ("D", " two\nlines \t"),
        ("E E", "x"),
        ("F", "$A `id` \\ \" '"),
        ("HOME", "/nowhere"),
        ("LC_ALL", "C"),
        ("PWD", "/elsewhere"),
        ("TMPDIR", "/some/tmp"),
        ("a.b-c", "x"),
        ("ünï", "☃"),
    ];
    let stdout = stdout_of(&with_variables(TestAction::new(["/usr/bin/env", "-0"]), &variables)).await?;
    let expected = variables.map(|(name, value)| format!("{name}={value}"));
    let found: Vec<_> = stdout.strip_suffix('\0').context("an end")?.split('\0').collect();
    ensure!(found == expected, "{found:?}");
    Ok(())
}

/// Nothing of longshore's own environment is seen, and nothing is added.
#[tokio::test]
async fn cmd_11() -> Result<()> {
    ensure!(std::env::vars_os().next().is_some(), "there is nothing that could leak");
    ensure!(stdout_of(&TestAction::new(["/usr/bin/env", "-0"])).await? == "");
    ensure!(stdout_of(&TestAction::new(["/bin/cat", "/proc/self/environ"])).await? == "");
    // The processes above it have nothing either that it could read.
    let stdout = stdout_of(&TestAction::shell("tr '\\0' '\\n' < /proc/$PPID/environ 2>&1 || true")).await?;
    ensure!(!stdout.contains('='), "{stdout}");
    Ok(())
}

/// Variables that are not sorted are taken as they are.
#[tokio::test]
async fn cmd_12() -> Result<()> {
    let variables = [("b", "1"), ("a", "2"), ("C", "3"), ("ü", "4"), ("_", "5")];
    let stdout = stdout_of(&with_variables(TestAction::new(["/usr/bin/env"]), &variables)).await?;
    let mut found: Vec<_> = stdout.lines().collect();
    found.sort_unstable();
    ensure!(found == ["C=3", "_=5", "a=2", "b=1", "ü=4"], "{found:?}");
    Ok(())
}

/// Of a variable that comes twice the last value counts; no name, or one with `=`, is `INVALID_ARGUMENT`.
#[tokio::test]
async fn cmd_13() -> Result<()> {
    let variables = [("A", "first"), ("B", "b"), ("A", "second"), ("A", "last"), ("B", "")];
    let stdout = stdout_of(&with_variables(TestAction::new(["/usr/bin/env"]), &variables)).await?;
    ensure!(stdout == "A=last\nB=\n", "{stdout}");
    // The search path too.
    let inputs = InputTree::new().executable("one/tool", says("one")).executable("two/tool", says("two"));
    let action = TestAction::new(["tool"]).inputs(inputs);
    ensure!(stdout_of(&with_variables(action, &[("PATH", "one"), ("PATH", "two")])).await? == "two\n");

    for name in ["", "=", "A=", "=A", "A=B"] {
        let action = TestAction::new(["/bin/true"]).environment(name, "value");
        is_refused(&action, &["Command.environment_variables", &format!("{name:?}")]).await?;
    }
    Ok(())
}

/// An empty working directory is the input root.
#[tokio::test]
async fn cmd_14() -> Result<()> {
    let inputs = InputTree::new().file("marker", "").file("d/other", "");
    for directory in ["", ".", "./", "./.", "d/..", "d/../"] {
        let action = TestAction::new(["/bin/ls"]).inputs(inputs.clone());
        let stdout = stdout_of(&within(directory, action)).await?;
        ensure!(stdout == "d\nmarker\n", "{directory:?}: {stdout:?}");
    }
    Ok(())
}

/// The working directory is relative to the input root, and made where it is missing.
#[tokio::test]
async fn cmd_15() -> Result<()> {
    let inputs = InputTree::new().file("d/e/marker", "").directory("empty");
    for (directory, content) in [
        ("d/e", "marker\n"),
        ("d//e/", "marker\n"),
        ("d", "e\n"),
        ("empty", ""),
        ("not", ""),
        ("not/in/the/inputs", ""),
        ("d/e/new", ""),
        ("with space/ünï/-x", ""),
    ] {
        let script = "ls; echo written > out; pwd -P > where";
        let action = TestAction::shell(script).inputs(inputs.clone()).outputs(["out", "where"]);
        let ran = run(&within(directory, action)).await?;
        let result = ran.result().await?;
        ensure!(ran.client.stdout(result).await? == content, "{directory:?}");
        // Outputs count from there as well.
        ensure!(ran.file("out").await? == "written\n");
        let end = format!("/root/{}\n", directory.replace("//", "/").trim_end_matches('/'));
        let stood = ran.file("where").await?;
        ensure!(stood.ends_with(end.as_bytes()), "{directory:?}: {stood:?}");
    }
    Ok(())
}

/// A working directory that is absolute or leaves the root is `INVALID_ARGUMENT`, and so is one that is too long.
#[tokio::test]
async fn cmd_16() -> Result<()> {
    let action = |directory: &str| within(directory, TestAction::new(["/bin/true"]));
    for directory in
        ["/", "/tmp", "//", "..", "../", "../x", "a/../..", "a/../../a", "./..", "../../../../etc"]
    {
        is_refused(&action(directory), &["Command.working_directory", directory]).await?;
    }
    let (name, path) = ("x".repeat(256), "x/".repeat(2100));
    is_refused(&action(&name), &["Command.working_directory", "256"]).await?;
    is_refused(&action(&path), &["Command.working_directory", "4199"]).await?;
    // Possible by itself, and not below the root of the action.
    let path = vec!["x".repeat(255); 15].join("/") + "/" + &"y".repeat(254);
    is_refused(&action(&path), &["Command.working_directory", "too long"]).await?;
    for directory in ["a/..", "a/../b", "a/b/../../c/.", &"x".repeat(255)] {
        run(&action(directory)).await?.result().await?;
    }
    Ok(())
}

/// A working directory that is a file is `INVALID_ARGUMENT`; links lead to one, as long as it lies in the root.
#[tokio::test]
async fn cmd_17() -> Result<()> {
    let inputs = InputTree::new()
        .file("file", "")
        .file("d/marker", "")
        .file("d/e/deep", "")
        .symlink("inside", "d")
        .symlink("d/up", "..")
        .symlink("chain", "inside/e")
        .symlink("to_file", "file")
        .symlink("absolute", "/tmp")
        .symlink("climbing", "../..")
        .symlink("back", "../root/d")
        .symlink("dangling", "nowhere")
        .symlink("loop", "loop");
    let action = |directory: &str| within(directory, TestAction::new(["/bin/ls"]).inputs(inputs.clone()));
    for directory in [
        "file",
        "file/x",
        "d/marker",
        "to_file",
        "to_file/x",
        "absolute",
        "absolute/x",
        "climbing",
        "climbing/x",
        "back",
        "dangling",
        "dangling/x",
        "loop",
        "loop/x",
    ] {
        is_refused(&action(directory), &["Command.working_directory", directory])
            .await
            .with_context(|| directory.to_owned())?;
    }
    for (directory, content) in [
        ("inside", "e\nmarker\nup\n"),
        ("inside/e", "deep\n"),
        ("chain", "deep\n"),
        ("d/up/d/e", "deep\n"),
        ("inside/new", ""),
    ] {
        ensure!(stdout_of(&action(directory)).await? == content, "{directory}");
    }
    Ok(())
}

/// A command has an empty stdin, a session of its own without a terminal, and no descriptor beyond 0, 1 and 2.
#[tokio::test]
async fn cmd_18() -> Result<()> {
    ensure!(
        stdout_of(&TestAction::shell("readlink /proc/$$/fd/0; wc -c; head -c 1")).await? == "/dev/null\n0\n"
    );
    // The fourth one is what `ls` opens.
    ensure!(stdout_of(&TestAction::new(["/bin/ls", "/proc/self/fd"])).await? == "0\n1\n2\n3\n");
    let stat = stdout_of(&TestAction::new(["/bin/cat", "/proc/self/stat"])).await?;
    let pid = stat.split(' ').next().context("a process id")?.to_owned();
    let fields: Vec<_> = stat.rsplit_once(") ").context("a name")?.1.split(' ').collect();
    let [_state, _parent, group, session, terminal, ..] = fields[..] else { anyhow::bail!("{stat}") };
    ensure!([group, session, terminal] == [&pid, &pid, "0"], "{stat}");
    let script = "exec 2> /dev/null; if (: < /dev/tty); then echo terminal; else echo none; fi";
    ensure!(stdout_of(&TestAction::shell(script)).await?.trim_end() == "none");
    Ok(())
}

/// The umask is 022, signals have their defaults and none is blocked, limits are those longshore was started with.
#[tokio::test]
async fn cmd_19() -> Result<()> {
    let script = "umask; mkdir d; : > f; stat -c %a d f";
    ensure!(stdout_of(&TestAction::shell(script)).await? == "0022\n755\n644\n");
    let status = stdout_of(&TestAction::new(["/bin/cat", "/proc/self/status"])).await?;
    for set in ["SigPnd", "SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find(|line| line.starts_with(set)).context(set)?;
        ensure!(line.ends_with("\t0000000000000000"), "{line}");
    }
    // A shell cannot even see a signal that it was started with as ignored.
    ensure!(run(&TestAction::shell("kill -PIPE $$")).await?.any_result()?.exit_code == 128 + 13);
    let limits = stdout_of(&TestAction::new(["/bin/cat", "/proc/self/limits"])).await?;
    ensure!(limits == std::fs::read_to_string("/proc/self/limits")?, "{limits}");
    Ok(())
}

/// `TMPDIR` is what the Command says.
/// Deviation: An action sees exactly the variables of its Command, so that its result depends on nothing else; a private
/// temporary folder comes with isolation, as a mount.
#[tokio::test]
async fn cmd_20() -> Result<()> {
    ensure!(stdout_of(&TestAction::shell("echo ${TMPDIR-unset}")).await? == "unset\n");
    // Relative to the root is private, and gone with it.
    let script = "mktemp > name && test -e \"$(cat name)\" && ls tmp | wc -l";
    let inputs = InputTree::new().directory("tmp");
    let action = TestAction::shell(script).environment("TMPDIR", "tmp").inputs(inputs);
    for _ in 0..2 {
        ensure!(stdout_of(&action).await? == "1\n");
    }
    Ok(())
}

/// What a command leaves running is killed before its outputs are read.
#[tokio::test]
async fn cmd_21() -> Result<()> {
    let longshore = Longshore::start().await?;
    let client = longshore.client().await?;
    let deaf = "trap '' TERM HUP INT QUIT; : > started; while :; do echo more >> out; done";
    let wait = "while ! test -s out; do :; done";
    for script in [
        format!("({deaf}) & {wait}"),
        format!("setsid sh -c \"{deaf}\" & {wait}"),
        format!("(setsid sh -c \"({deaf}) &\" &) ; {wait}"),
        // Nothing waits for the other end of its streams.
        format!("({deaf}) > /dev/null 2>&1 < /dev/null & {wait}; exec true"),
    ] {
        let ran = run_by(&client, &TestAction::shell(&script).outputs(["out", "started"])).await?;
        ran.result().await.with_context(|| script.clone())?;
        // Reading checks it against its digest: nobody wrote after it was hashed.
        let content = ran.file("out").await?;
        ensure!(content.starts_with(b"more\n"), "{script}");
        ensure!(foreign_descendants(longshore.pid())?.is_empty(), "{script}");
    }
    // A process that stopped itself does not hold anything up either.
    let script = "sh -c 'kill -STOP $$' & echo $! > pid; wait $! & echo done";
    let ran = run_by(&client, &TestAction::shell(script).timeout(Duration::from_mins(1))).await?;
    ran.result().await?;
    ensure!(foreign_descendants(longshore.pid())?.is_empty());
    Ok(())
}

/// Unknown fields and numbers of a newer Command do no harm: an unknown format of directories is a Tree.
#[tokio::test]
async fn cmd_22() -> Result<()> {
    let (_longshore, client) = shared_client().await?;
    let mut action = declaring(TestAction::shell("mkdir d; echo f > d/f"), &["d"]);
    for format in [99, -1, i32::MAX] {
        action.command.output_directory_format = format;
        let ran = run(&action).await?;
        ran.result().await?;
        ensure!(ran.contents("d").await? == ["f"]);
        ensure!(ran.directory("d")?.root_directory_digest.is_none());
    }
    // A field that is not defined yet, of every wire type: a number, eight bytes, text, four bytes.
    let mut command = action.command.encode_to_vec();
    command.extend(b"\xb8\x3e\x07\xc1\x3e12345678\xca\x3e\x04text\xd5\x3e1234");
    let command = client.put(command).await?;
    let root = put_message(&client, &reapi::Directory::default()).await?;
    let action = reapi::Action {
        command_digest: Some(command.to_wire()),
        input_root_digest: Some(root.to_wire()),
        ..Default::default()
    };
    let action = put_message(&client, &action).await?;
    let response = execute(&client, &action).await?;
    ensure!(succeeded(&response).output_directories.len() == 1);
    Ok(())
}
