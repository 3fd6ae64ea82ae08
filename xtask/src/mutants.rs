//! Mutation testing of the code that makes decisions: each mutant of `cargo-mutants` has to fail a fast test, or has a
//! reason in `xtask/survivors.txt`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    path::Path,
    process::Command,
};

use self::parts::{PARTS, Part, Sources};
use crate::{
    command::{Result, protoc},
    etcd,
};

mod parts;

/// Path of the list of survivors with reasons.
const SURVIVORS: &str = "xtask/survivors.txt";

/// Maximum duration of the first tests of a mutant in seconds. They take a few without a mutant, so one that takes
/// longer counts as noticed.
const FIRST_LIMIT: &str = "60";

/// Maximum duration of all tests of a mutant in seconds, after which it counts as noticed.
const LIMIT: &str = "240";

/// Variables that shorten the build of a mutant.
const FAST_BUILD: [(&str, &str); 2] = [("CARGO_INCREMENTAL", "1"), ("CARGO_PROFILE_DEV_DEBUG", "0")];

/// Use of the results of a former run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FormerRun {
    #[default]
    Forgotten,
    /// Mutants that it noticed are left out.
    Continued,
}

/// Mutants that the arguments select.
#[derive(Debug, Default)]
struct PartSelection {
    /// Names of parts; all if there are none.
    parts: BTreeSet<String>,
    /// Files; all if there are none.
    files: BTreeSet<String>,
    /// The other files of core.
    rest: bool,
    former: FormerRun,
}

impl PartSelection {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut choice = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--part" => drop(choice.parts.insert(args.next().ok_or("--part needs a value")?)),
                "--file" => {
                    let file = args.next().ok_or("--file needs a value")?;
                    if file.contains('*') && !PARTS.iter().any(|part| part.files.contains(&file.as_str())) {
                        return Err(format!("{file} is no file, and no pattern of a part").into());
                    }
                    choice.files.insert(file);
                }
                "--rest" => choice.rest = true,
                "--resume" => choice.former = FormerRun::Continued,
                other => return Err(format!("{other} is no option of mutants").into()),
            }
        }
        if let Some(unknown) = choice.parts.iter().find(|name| PARTS.iter().all(|part| part.name != **name)) {
            return Err(format!("{unknown} is no part").into());
        }
        Ok(choice)
    }

    /// Returns the chosen files of the part with this number, as patterns, without those of the parts before.
    fn sources(&self, number: usize) -> Sources<'_> {
        let (part, excluded) = (&PARTS[number], PARTS[..number].iter().flat_map(|part| part.files).copied().collect());
        let mut sources = Sources { files: part.files.to_vec(), excluded };
        if !self.parts.is_empty() && !self.parts.contains(part.name) {
            sources.files.clear();
        } else if !self.files.is_empty() {
            sources.files = self.files.iter().map(String::as_str).filter(|file| sources.contain(file)).collect();
        }
        sources
    }
}

/// Runs all parts, or the chosen ones. The rest of core is a measurement: its survivors are printed, and need no
/// reason.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result {
    let choice = PartSelection::parse(args)?;
    if etcd::on_path("cargo-mutants").is_none() {
        return Err("`cargo-mutants` is missing. Install it: `cargo install cargo-mutants --locked`".into());
    }
    if choice.rest {
        return measure_rest(choice.former);
    }
    let reasons = reasons(&fs::read_to_string(SURVIVORS)?)?;
    let (mut all, mut unexplained, mut killed) = (Found::default(), Vec::new(), Vec::new());
    for (number, part) in PARTS.iter().enumerate() {
        let sources = choice.sources(number);
        if sources.files.is_empty() {
            continue;
        }
        let found = mutate(part.name, part, &sources, choice.former)?;
        unexplained.extend(without_reason(&found.missed, &reasons));
        let of_part = reasons.keys().filter(|known| sources.contain(file_of(known)));
        killed.extend(of_part.filter(|known| !found.missed.contains(*known)).cloned());
        all.add(found);
    }
    if all.tried() == 0 {
        return Err("no mutant was tried: the files are not in the list of files that make decisions".into());
    }
    println!("\n{all}; {} of them without a reason", unexplained.len());
    all.timed_out.iter().for_each(|name| println!("timed out, which counts as noticed: {name}"));
    for known in killed {
        println!("no longer a survivor, its reason can be removed: {known}");
    }
    if unexplained.is_empty() {
        return Ok(());
    }
    Err(format!(
        "these mutants survived the tests; add a test, or a reason in {SURVIVORS}:\n{}",
        unexplained.join("\n")
    )
    .into())
}

/// Returns the survivors without a reason. A reason is about one mutant, so others of the same name have none.
fn without_reason(survivors: &[String], reasons: &BTreeMap<String, String>) -> Vec<String> {
    let mut unused: BTreeSet<_> = reasons.keys().collect();
    survivors.iter().filter(|survivor| !unused.remove(survivor)).cloned().collect()
}

/// Measures the files of core that are in no part.
fn measure_rest(former: FormerRun) -> Result {
    let excluded = PARTS.iter().flat_map(|part| part.files).copied().collect();
    let found = mutate("rest", &PARTS[0], &Sources { files: vec!["core/src/**/*.rs"], excluded }, former)?;
    println!("\nthe rest of core: {found}:");
    found.missed.iter().for_each(|survivor| println!("{survivor}"));
    Ok(())
}

/// Returns the file of a mutant, given by its [`lasting_name`].
fn file_of(mutant: &str) -> &str {
    mutant.split_once(':').map_or(mutant, |(file, _)| file)
}

/// Outcome of the mutants of some files, by their [`lasting_name`].
#[derive(Debug, Default)]
struct Found {
    caught: Vec<String>,
    /// Two mutants may have the same name.
    missed: Vec<String>,
    timed_out: Vec<String>,
    unviable: Vec<String>,
    /// Noticed or unviable before.
    before: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { caught, missed, timed_out, unviable, before } = self;
        let [caught, missed, timed_out, unviable, before] = [caught, missed, timed_out, unviable, before].map(Vec::len);
        write!(f, "{} mutants: tests noticed {caught} and did not end for {timed_out}", self.tried())?;
        write!(f, ", {unviable} do not compile, a former run had noticed {before}, {missed} survived")
    }
}

impl Found {
    /// Parses the files that `cargo-mutants` wrote. `source` reads a file of the workspace.
    fn parse(read: impl Fn(&str) -> Result<String>, source: impl Fn(&str) -> Result<String>) -> Result<Self> {
        let lines = |file: &str| -> Result<Vec<String>> {
            read(file)?.lines().map(|line| lasting_name(line, &source)).collect()
        };
        Ok(Self {
            caught: lines("caught.txt")?,
            missed: lines("missed.txt")?,
            timed_out: lines("timeout.txt")?,
            unviable: lines("unviable.txt")?,
            before: lines("previously_caught.txt")?,
        })
    }

    /// Adds the outcome of other mutants.
    fn add(&mut self, other: Self) {
        let Self { caught, missed, timed_out, unviable, before } = other;
        self.caught.extend(caught);
        self.missed.extend(missed);
        self.timed_out.extend(timed_out);
        self.unviable.extend(unviable);
        self.before.extend(before);
    }

    /// Returns the number of mutants, including those that do not compile.
    fn tried(&self) -> usize {
        [&self.caught, &self.missed, &self.timed_out, &self.unviable, &self.before].map(Vec::len).iter().sum()
    }
}

/// Tries the mutants with the first tests, and those that survive with all tests of the part.
fn mutate(name: &str, part: &Part, sources: &Sources<'_>, former: FormerRun) -> Result<Found> {
    let output = env::current_dir()?.join("target/mutants").join(name);
    fs::create_dir_all(&output)?;
    println!("\n==> mutants of {}", sources.files.join(", "));
    let mut found = try_tests(&output, part, sources, former, Tests::First)?;
    if found.missed.is_empty() {
        return Ok(found);
    }
    println!(
        "\n==> {} of them with more tests, without the {} that timed out",
        found.missed.len(),
        found.timed_out.len()
    );
    leave_out_timeouts(&output.join("mutants.out"))?;
    let last = try_tests(&output, part, sources, FormerRun::Continued, Tests::All)?;
    // The others are those that the first tests noticed.
    found.missed.clear();
    found.add(Found { before: Vec::new(), ..last });
    Ok(found)
}

/// Adds the mutants whose tests did not end to those that a further run leaves out.
fn leave_out_timeouts(results: &Path) -> Result {
    let (timeouts, noticed) = (results.join("timeout.txt"), results.join("previously_caught.txt"));
    if timeouts.exists() {
        let known = if noticed.exists() { fs::read_to_string(&noticed)? } else { String::new() };
        fs::write(noticed, known + &fs::read_to_string(timeouts)?)?;
    }
    Ok(())
}

/// Tests that have to notice a mutant.
#[derive(Clone, Copy)]
enum Tests {
    First,
    All,
}

fn try_tests(output: &Path, part: &Part, sources: &Sources<'_>, former: FormerRun, tests: Tests) -> Result<Found> {
    let (limit, packages, options) = match tests {
        Tests::First => (FIRST_LIMIT, &[part.package][..], part.first),
        Tests::All => (LIMIT, part.tested_by, part.options),
    };
    let mut command = Command::new("cargo-mutants");
    command.envs(protoc()?).envs(etcd::find()?.variables()).envs(FAST_BUILD).args([
        "mutants",
        "--timeout",
        limit,
        "--package",
        part.package,
    ]);
    command.args((former == FormerRun::Continued).then_some("--iterate")).arg("--output").arg(output);
    command.args(sources.files.iter().flat_map(|file| ["--file", *file]));
    command.args(sources.excluded.iter().flat_map(|file| ["--exclude", *file]));
    command.args(packages.iter().flat_map(|package| ["--test-package", package]));
    // Options after `--` apply to the run of the tests only; these also leave the other programs unbuilt.
    command.args(options.iter().map(|option| format!("--cargo-arg={option}")));
    // Survivors are no failure: status 2 means that there are some, 3 that some timed out.
    let status = command.status()?;
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        return Err(format!("cargo-mutants failed: {status}").into());
    }
    let outcome = |file: &str| {
        let path = output.join("mutants.out").join(file);
        // Without such mutants there is no file.
        if path.exists() { Ok(fs::read_to_string(path)?) } else { Ok(String::new()) }
    };
    Found::parse(outcome, |file| Ok(fs::read_to_string(file)?))
}

/// Returns `file:line:column: text` with the code at the position instead of the numbers, which change with every edit.
/// The text alone does not identify a mutant: a function may have several `!` to delete.
fn lasting_name(line: &str, source: impl Fn(&str) -> Result<String>) -> Result<String> {
    let [file, row, column, text] = line.splitn(4, ':').collect::<Vec<_>>()[..] else {
        return Ok(line.to_owned());
    };
    let (row, column): (usize, usize) = (row.parse()?, column.parse()?);
    let code = source(file)?;
    let code = code.lines().nth(row - 1).map(|line| line.chars().skip(column - 1).collect::<String>());
    Ok(format!("{file}:{text} | {}", code.unwrap_or_default()))
}

/// Parses the known survivors: one line each, followed by an indented reason.
fn reasons(text: &str) -> Result<BTreeMap<String, String>> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut reasons = BTreeMap::new();
    while let Some(survivor) = lines.next() {
        let reason = lines.next().filter(|reason| reason.starts_with(' '));
        let reason = reason.ok_or(format!("{SURVIVORS}: there is no reason for {survivor}"))?;
        reasons.insert(survivor.to_owned(), reason.trim().to_owned());
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use glob::Pattern;

    use super::*;

    #[test]
    fn a_reason_is_about_one_survivor() {
        let reasons = reasons("a.rs: delete ! in f | !x\n  It is never read.").expect("a reason");
        let survivors = ["a.rs: delete ! in f | !x", "a.rs: delete ! in f | !x", "b.rs: delete ! in g | !y"];
        assert_eq!(without_reason(&survivors.map(str::to_owned), &reasons), survivors[1..]);
    }

    #[test]
    fn every_known_survivor_has_a_reason() {
        let known = reasons(include_str!("../survivors.txt")).expect("each has one");
        assert!(known.values().all(|reason| reason.len() > 10), "{known:?}");
        assert!(reasons("core/src/a.rs: replace a with b\ncore/src/b.rs: replace b with c").is_err());
    }

    #[test]
    fn every_listed_file_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in PARTS.iter().flat_map(|part| part.files) {
            assert!(Pattern::new(file).is_ok(), "{file}");
            let path = file.strip_suffix("**/*.rs").unwrap_or(file);
            assert!(root.join(path).exists(), "{file}");
        }
    }

    #[test]
    fn each_survivor_is_of_one_part() {
        let known = reasons(include_str!("../survivors.txt")).expect("each has a reason");
        let all = PartSelection::default();
        for survivor in known.keys() {
            let file = file_of(survivor);
            let parts = (0..PARTS.len()).filter(|number| all.sources(*number).contain(file));
            assert_eq!(parts.count(), 1, "{file}");
        }
    }

    /// Otherwise the reason is about code that is gone.
    #[test]
    fn the_code_of_each_survivor_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for survivor in reasons(include_str!("../survivors.txt")).expect("each has a reason").keys() {
            let file = std::fs::read_to_string(root.join(file_of(survivor))).expect("its file");
            // The name of a mutant may contain a bar, too.
            let exists = survivor.match_indices(" | ").any(|(bar, _)| file.contains(&survivor[bar + 3..]));
            assert!(exists, "{survivor}");
        }
    }

    #[test]
    fn parts_select_their_files() {
        let choice = |args: &[&str]| PartSelection::parse(args.iter().map(|arg| (*arg).to_owned()));
        let one = choice(&["--part", "grpc", "--resume"]).expect("a part");
        for (number, part) in PARTS.iter().enumerate() {
            let expected = if part.name == "grpc" { part.files } else { &[] };
            assert_eq!(one.sources(number).files, expected, "{}", part.name);
        }
        assert!(one.former == FormerRun::Continued && !one.rest);
        // By name, by a pattern, and by a pattern that an earlier part has as well.
        for (file, name) in [
            ("core/src/lock/fence.rs", "core"),
            ("backend-etcd/src/layout/kitex.rs", "other-layouts"),
            ("backend-etcd/src/layout/native.rs", "layouts"),
        ] {
            let choice = choice(&["--file", file]).expect("a file");
            for (number, part) in PARTS.iter().enumerate() {
                let expected = if part.name == name { &[file][..] } else { &[] };
                assert_eq!(choice.sources(number).files, expected, "{file}, {}", part.name);
            }
        }
        assert!(choice(&["--file", "core/src/lock/*.rs"]).is_err());
        assert!(choice(&["--part", "other"]).is_err() && choice(&["--part"]).is_err());
    }

    #[test]
    fn outcomes_of_former_runs_count() {
        let outcome = |file: &str| {
            let lines = match file {
                "caught.txt" => "a.rs:1:2: x\n",
                "missed.txt" => "a.rs:2:3: y\n",
                "previously_caught.txt" => "a.rs:3:4: z\n",
                _ => "",
            };
            Ok(lines.to_owned())
        };
        let found = Found::parse(outcome, |_| Ok("one\ntwo\nthree".to_owned())).expect("texts");
        assert_eq!((found.tried(), found.missed), (3, vec!["a.rs: y | o".to_owned()]));
    }

    #[test]
    fn the_outcome_names_all_counts() {
        let names = |count| vec![String::new(); count];
        let mut found = Found { caught: names(5), unviable: names(3), ..Found::default() };
        found.add(Found { caught: names(1), missed: names(2), timed_out: names(4), ..Found::default() });
        let text = "15 mutants: tests noticed 6 and did not end for 4, 3 do not compile, a former run had noticed 0, \
                    2 survived";
        assert_eq!(found.to_string(), text);
    }

    #[test]
    fn a_survivor_is_known_at_any_line() {
        let name = |line: &str, code: &str| lasting_name(line, |_| Ok(code.to_owned())).expect("a source");
        let known = "core/src/a.rs: delete ! in f | !a && !b";
        assert_eq!(name("core/src/a.rs:2:8: delete ! in f", "fn f() {\n    if !a && !b"), known);
        assert_eq!(name("core/src/a.rs:1:4: delete ! in f", "if !a && !b"), known);
        assert_ne!(name("core/src/a.rs:1:10: delete ! in f", "if !a && !b"), known, "the other one");
    }
}
