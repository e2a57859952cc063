//! The table of rules in `docs/conformance.md`: made from `rules.txt` and the tests themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use longshore_tests::source::source_root;

const RULES: &str = "tests/conformance/rules.txt";
const TESTS: &str = "tests/conformance";
const TABLE: &str = "docs/conformance.md";
/// Set to write the table instead of comparing it.
const WRITE: &str = "LONGSHORE_WRITE_TABLE";

/// The groups of rules whose file is not named after their prefix.
const FILES: [(&str, &str); 1] = [("ref", "reference")];

/// One rule of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    id: String,
    level: char,
}

/// One section of the list.
#[derive(Clone, Debug, Default)]
struct Section {
    title: String,
    rules: Vec<Rule>,
}

/// How a rule is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Met,
    Deviation,
    Absent,
    Open,
}

/// What the doc comment of a test says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    rule: String,
    verdict: Verdict,
    reason: String,
    file: String,
}

fn parse_rules(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.push(Section { title: title.to_owned(), rules: Vec::new() });
            continue;
        }
        let fields: Vec<_> = line.split(' ').collect();
        let [id, _who, level, _since] = fields[..] else { panic!("{RULES}: {line:?} has not four fields") };
        let level = level.chars().next().expect("a field is not empty");
        let section = sections.last_mut().unwrap_or_else(|| panic!("{RULES}: {id} is in no section"));
        section.rules.push(Rule { id: id.to_owned(), level });
    }
    sections
}

/// The tests of a source file that are named like rules, by the rules' IDs.
fn parse_tests(file: &str, source: &str) -> BTreeMap<String, Test> {
    let mut tests = BTreeMap::new();
    let mut paragraphs = vec![String::new()];
    let mut is_test = false;
    for line in source.lines() {
        if let Some(text) = line.strip_prefix("///") {
            match text.trim() {
                "" => paragraphs.push(String::new()),
                text => {
                    let paragraph = paragraphs.last_mut().expect("there is always one");
                    // A verdict begins a paragraph of its own, blank line or not.
                    if !paragraph.is_empty() && verdict_of(text).is_some() {
                        paragraphs.push(text.to_owned());
                    } else {
                        if !paragraph.is_empty() {
                            paragraph.push(' ');
                        }
                        paragraph.push_str(text);
                    }
                }
            }
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[tokio::test") || line == "#[test]";
        } else {
            if is_test && let Some(id) = id_in(line) {
                let test = describe(file, &paragraphs);
                assert!(!test.rule.is_empty(), "{file}: {id} does not say its rule");
                tests.insert(id, test);
            }
            paragraphs = vec![String::new()];
            is_test = false;
        }
    }
    tests
}

/// The rule that a function is the test of: `async fn dig_01()` is that of `DIG-01`.
fn id_in(line: &str) -> Option<String> {
    let name = line.trim_start_matches("async ").strip_prefix("fn ")?.split('(').next()?;
    let (prefix, number) = name.rsplit_once('_')?;
    let is_id = number.len() == 2
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && prefix.bytes().all(|byte| byte.is_ascii_lowercase());
    is_id.then(|| format!("{}-{number}", prefix.to_uppercase()))
}

fn verdict_of(paragraph: &str) -> Option<(Verdict, &str)> {
    let verdicts =
        [("Deviation:", Verdict::Deviation), ("Absent:", Verdict::Absent), ("Open:", Verdict::Open)];
    verdicts.into_iter().find_map(|(word, verdict)| Some((verdict, paragraph.strip_prefix(word)?.trim())))
}

fn describe(file: &str, paragraphs: &[String]) -> Test {
    let rule = paragraphs[0].clone();
    let (verdict, reason) =
        paragraphs.iter().find_map(|paragraph| verdict_of(paragraph)).unwrap_or((Verdict::Met, ""));
    Test { rule, verdict, reason: reason.to_owned(), file: file.to_owned() }
}

fn file_of(id: &str) -> String {
    let prefix = id.split('-').next().unwrap_or(id).to_lowercase();
    FILES.iter().find(|(known, _)| *known == prefix).map_or(prefix.clone(), |(_, file)| (*file).to_owned())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every test of a rule there is; each is in the file of its prefix.
fn all_tests() -> BTreeMap<String, Test> {
    let folder = source_root().join(TESTS);
    let mut tests = BTreeMap::new();
    for entry in fs::read_dir(&folder).expect("the folder of the tests") {
        let path = entry.expect("a directory entry").path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if path.extension().is_some_and(|extension| extension == "rs") {
            for (id, test) in parse_tests(stem, &read(&path)) {
                assert_eq!(test.file, file_of(&id), "{id} belongs into another file");
                tests.insert(id, test);
            }
        }
    }
    tests
}

fn table(sections: &[Section], tests: &BTreeMap<String, Test>) -> String {
    let mut text = String::from(
        "# Conformance\n\n<!-- Made by `LONGSHORE_WRITE_TABLE=1 cargo test -p longshore-tests --test conformance table`. -->\n\n\
         Every rule of the Remote Execution API that concerns a worker or a standalone server is a test of its name in \
         `tests/conformance`, on the real binary over gRPC. Levels: M must, S should, A allowed, X our choice where the \
         specification is silent, - a fact. Where longshore does otherwise, does without or cannot yet, the reason \
         stands beside the rule, and the test shows what it does.\n\n",
    );
    count(&mut text, sections, tests);
    for section in sections {
        let _ = write!(
            text,
            "\n## {}\n\n| rule | level | | in a few words |\n|---|---|---|---|\n",
            section.title
        );
        for rule in &section.rules {
            let Some(found) = tests.get(&rule.id) else { continue };
            let verdict = match found.verdict {
                Verdict::Met => "",
                Verdict::Deviation => "deviation",
                Verdict::Absent => "absent",
                Verdict::Open => "open",
            };
            let words = [found.rule.as_str(), &capitalised(&found.reason)].join(" ").replace('|', "\\|");
            let link = format!("[{}](../{TESTS}/{}.rs)", rule.id, found.file);
            let _ = writeln!(text, "| {link} | {} | {verdict} | {} |", rule.level, words.trim());
        }
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// How many rules of each level are met, and how many are not.
fn count(text: &mut String, sections: &[Section], tests: &BTreeMap<String, Test>) {
    let mut counts: BTreeMap<char, BTreeMap<Verdict, usize>> = BTreeMap::new();
    for rule in sections.iter().flat_map(|section| &section.rules) {
        if let Some(test) = tests.get(&rule.id) {
            *counts.entry(rule.level).or_default().entry(test.verdict).or_default() += 1;
        }
    }
    text.push_str("| level | rules | met | deviation | absent | open |\n|---|---|---|---|---|---|\n");
    for level in ['M', 'S', 'A', 'X', '-'] {
        let of =
            |verdict| counts.get(&level).and_then(|counts| counts.get(&verdict)).copied().unwrap_or_default();
        let (met, deviation, absent, open) =
            (of(Verdict::Met), of(Verdict::Deviation), of(Verdict::Absent), of(Verdict::Open));
        let rules = met + deviation + absent + open;
        let _ = writeln!(text, "| {level} | {rules} | {met} | {deviation} | {absent} | {open} |");
    }
}

/// What the list and the tests do not agree on.
fn disagreements(sections: &[Section], tests: &BTreeMap<String, Test>) -> Vec<String> {
    let ids: Vec<_> = sections.iter().flat_map(|section| &section.rules).map(|rule| &rule.id).collect();
    let untested = ids.iter().filter(|id| !tests.contains_key(**id)).map(|id| format!("{id} has no test"));
    let unlisted =
        tests.keys().filter(|id| !ids.contains(id)).map(|id| format!("{id} is no rule of {RULES}"));
    untested.chain(unlisted).collect()
}

// The documentation says what the tests show. Where this fails, run it once with LONGSHORE_WRITE_TABLE=1.
#[test]
fn table_is_up_to_date() {
    let sections = parse_rules(&read(&source_root().join(RULES)));
    let made = table(&sections, &all_tests());
    let path = source_root().join(TABLE);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &made).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    assert!(read(&path) == made, "{TABLE} is out of date: run this test once with {WRITE}=1");
}

// A rule without a test would be a promise that nobody keeps.
#[test]
fn every_rule_has_a_test_and_every_test_a_rule() {
    let sections = parse_rules(&read(&source_root().join(RULES)));
    assert_eq!(disagreements(&sections, &all_tests()), Vec::<String>::new());
}

#[test]
fn canary_what_is_missing_is_found() {
    let sections = parse_rules("# words\n\n[One]\nAB-01 S M 2.0\nAB-02 W X 2.3\n");
    assert_eq!(sections[0].rules.len(), 2);
    let source = "/// Is so,\n/// and not otherwise.\n#[tokio::test]\nasync fn ab_01() {}\n\n\
                  /// Would be.\n///\n/// Details.\n/// Absent: nobody\n/// asks.\n#[test]\nfn ab_03() {}\n\n\
                  /// No test.\nasync fn ab_04() {}\n";
    let tests = parse_tests("ab", source);
    assert_eq!(tests["AB-01"].rule, "Is so, and not otherwise.");
    assert_eq!((tests["AB-03"].verdict, tests["AB-03"].reason.as_str()), (Verdict::Absent, "nobody asks."));
    assert_eq!(
        disagreements(&sections, &tests),
        ["AB-02 has no test", "AB-03 is no rule of tests/conformance/rules.txt"]
    );
    let source = "/// Waits.\n/// Open: for a reason.\n#[test]\nfn ab_02() {}\n";
    assert!(table(&sections, &parse_tests("ab", source)).contains("| X | open | Waits. For a reason. |"));
    assert!(table(&sections, &tests).contains("| M | 1 | 1 | 0 | 0 | 0 |"));
}
