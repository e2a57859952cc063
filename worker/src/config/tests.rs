use std::io::Write as _;

use super::*;

const SCHEDULER: &str = "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpc://localhost:1\"\n";

/// What is said of a file with that text.
fn error(text: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let error = Config::read(file.path()).unwrap_err().to_string();
    error.replace(file.path().to_str().unwrap(), "FILE")
}

#[test]
fn what_is_not_said_has_a_default() {
    let config = Config::parse(SCHEDULER).unwrap();
    let scheduler = &config.schedulers[0];
    let cas = scheduler.cas();
    assert_eq!(cas.endpoint.get_ref().uri, "grpc://localhost:1");
    assert_eq!((cas.instance_name, cas.compression), (Some(InstanceName::default()), true));
    assert_eq!(config.worker.log_bytes_max(), 1 << 30);
    assert!(scheduler.properties().is_empty());
}

#[test]
fn a_cas_of_its_own_takes_the_instance_alone_from_its_scheduler() {
    let text = format!(
        "{SCHEDULER}token_file = \"/token\"\ninstance_name = \"main\"\n[scheduler.cas]\nendpoint = \"unix:/cas\"\n"
    );
    let cas = Config::parse(&text).unwrap().schedulers[0].cas();
    let name = cas.instance_name.map(|name| name.0);
    assert_eq!((cas.endpoint.get_ref().uri.as_str(), name.as_deref()), ("unix:/cas", Some("main")));
    // A token is for whom it was given to.
    assert_eq!(cas.token_file, None);
}

#[test]
fn a_property_may_have_several_values() {
    let text = format!("{SCHEDULER}platform = {{ ISA = [\"b\", \"a\", \"b\"], OSFamily = \"linux\" }}\n");
    let properties = Config::parse(&text).unwrap().schedulers[0].properties();
    let pairs: Vec<_> = properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [("ISA", "a"), ("ISA", "b"), ("OSFamily", "linux")]);
}

// Who makes a mistake is told where it is and what would be right.
#[test]
fn mistakes_are_refused_with_their_line_and_what_is_allowed() {
    let cases: [(&str, &[&str]); 21] = [
        ("", &["FILE: there is no [[scheduler]]"]),
        ("[worker]\n\njob = 3\n", &["FILE, line 3", "unknown field `job`", "`jobs`"]),
        ("[worker]\njobs = 0\n", &["line 2", "from 1 to 65535"]),
        ("[worker]\njobs = \"4\"\n", &["line 2", "string", "a number from 1 to 65535"]),
        ("[worker]\njobs = 1.5\n", &["line 2", "a number from 1 to 65535"]),
        ("[worker]\ndrain_time = 10\n", &["line 2", "a text such as \"15m\""]),
        ("[worker]\nname = \"\"\n", &["line 2", "expected a name"]),
        ("[scheduler]\nkind = \"bots\"\n", &["line 1", "[[scheduler]], in two brackets"]),
        ("[worker]\nmax_size = \"12 parsecs\"\n", &["line 2", "GB"]),
        ("[worker]\ndrain_time = \"soon\"\n", &["line 2", "15m"]),
        ("x = 1\n", &["line 1", "unknown field `x`", "`worker`"]),
        ("[[scheduler]]\nkind = \"bots\"\n", &["line 1", "missing field `endpoint`"]),
        ("[[scheduler]]\nkind = \"cron\"\n", &["line 2", "unknown variant `cron`", "`bots`"]),
        (
            "[[scheduler]]\nkind = \"bots\"\ninstance_name = \"main/\"\n",
            &["line 3", "\"main/\" has an empty segment"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"localhost:1\"\n",
            &["line 3", "grpc://HOST:PORT", "unix:PATH"],
        ),
        (
            "[[scheduler]]\nkind = \"nativelink\"\nendpoint = \"grpc://localhost:1\"\nplatform = { a = [\"1\", \"2\"] }\n",
            &["line 3", "one value", "a has several"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpc://localhost:1\"\nplatform = { a = 1 }\n",
            &["line 4", "a string or a list of strings"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpc://localhost:1\"\ntls = { authorities = \"/ca\" }\n",
            &["line 3", "grpcs://"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpcs://localhost:1\"\ntls = { key = \"/key\" }\n",
            &["line 3", "tls.certificate and tls.key"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpc://localhost:1\"\ntoken_file = \"\"\n",
            &["line 4", "the path of a file"],
        ),
        (
            "[[scheduler]]\nkind = \"bots\"\nendpoint = \"grpcs://localhost:1\"\n[scheduler.tls]\nauthorities = \"\"\n",
            &["line 5", "the path of a file"],
        ),
    ];
    for (text, wanted) in cases {
        let error = error(text);
        for words in wanted {
            assert!(error.contains(words), "{text}\n{error}\nlacks {words}");
        }
    }
    let no_folder = error(&format!("{SCHEDULER}[worker]\njobs = 1\nroot = \"\"\n"));
    assert!(no_folder.contains("line 6") && no_folder.contains("expected a folder"), "{no_folder}");
    for again in [SCHEDULER.to_owned(), SCHEDULER.replace("grpc://localhost:1", "http://LOCALHOST:1/")] {
        let twice = error(&format!("{SCHEDULER}{again}"));
        assert!(twice.contains("line 6") && twice.contains("twice"), "{twice}");
    }
    for (platform, reason) in [("{ \"\" = \"x\" }", "has no name"), ("{ a = [] }", "a has no value")] {
        let error = error(&format!("{SCHEDULER}platform = {platform}\n"));
        assert!(error.contains("line 3") && error.contains(reason), "{error}");
    }
    let absent = Config::read(Path::new("/nowhere/longshore.toml")).unwrap_err().to_string();
    assert!(absent.contains("/nowhere/longshore.toml"), "{absent}");
}

/// The reference with every field that need not be there.
fn in_full() -> String {
    let lines = REFERENCE.lines().map(|line| match line.strip_prefix('#') {
        Some(field) if field.starts_with(|c: char| c.is_alphabetic()) => field,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_reference_can_be_used_with_and_without_what_need_not_be_there() {
    Config::parse(REFERENCE).unwrap();
    Config::parse(&in_full()).unwrap();
}

// A field that nobody has described is found: the parser itself lists those that it knows.
#[test]
fn the_reference_describes_every_field() {
    let reference = in_full();
    for table in ["[worker]", "[[scheduler]]", "[scheduler.tls]", "[scheduler.cas]", "[scheduler.cas.tls]"] {
        let (before, after) = reference.split_once(&format!("\n{table}\n")).expect(table);
        let section = format!("\n{}", after.split("\n[").next().unwrap());
        let broken = format!("{before}\n{table}\nno_such_field = 1\n{after}");
        let (_, message) = Config::parse(&broken).unwrap_err();
        let fields: Vec<_> = message.split('`').skip(3).step_by(2).collect();
        assert!(fields.len() >= 4, "{message}");
        for field in fields {
            let is_described = section.contains(&format!("\n{field} = "))
                || reference.contains(&format!("[scheduler.{field}]"))
                || reference.contains(&format!("[scheduler.cas.{field}]"));
            assert!(is_described, "{table} {field}");
        }
    }
}
