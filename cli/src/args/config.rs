//! Options of `enlist config`.

use std::{ffi::OsString, fmt, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use enlist::escape::Hidden;

use super::{commands::Run, values::duration};

const SET_HELP: &str = "\
Examples:
  enlist config set app/log.toml --file log.toml
  enlist config set app/level debug --expect 12

A value whose path ends in .json or .toml has to parse, unless --no-check is given. All users of the machine can read \
the command line: pass a secret with --file.";

const EDIT_HELP: &str = "\
Example:
  enlist config edit app/log.toml

The value is written only if no other client has written it meanwhile, and if it parses (.json, .toml). Otherwise the \
text is kept, and its place is printed. A final newline that the editor adds to a value without one, or to a new value \
of one line, is removed.";

const DIFF_HELP: &str = "\
Examples:
  enlist config diff app/log.toml
  enlist config diff app/log.toml --from 12 --to 15
  enlist config diff app/log.toml --file log.toml
  enlist config diff --dir config

With --file and --dir, the lines of the files are the new ones.";

const WATCH_HELP: &str = "\
Examples:
  enlist config watch app/
  enlist config watch app/log.toml --write-to /tmp/log.toml -- systemctl reload app
  enlist config watch app/log.toml --write-to /tmp/log.toml --signal HUP -- ./app --config /tmp/log.toml

COMMAND is run at the start and after each change: at most every --debounce, never twice at the same time, and once \
more after changes during a run. With --signal it is started once and gets the signal instead. With --write-to, a \
value that is absent or does not parse (.json, .toml) leaves FILE and COMMAND alone.";

const IMPORT_HELP: &str = "\
Examples:
  enlist config import config --dry-run
  enlist config export - | enlist config import - --namespace copy

Each file is one value; its path is that of the file below DIR. Only differences are written, each only if the stored \
value has not changed meanwhile: in one transaction if they are at most 100 and at most 1 MiB, otherwise in several.";

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a value to the standard output; exit with 1 if it is absent
    #[command(after_help = "Example:\n  enlist config get app/log.toml > log.toml")]
    Get(ConfigGet),
    /// Write a value
    #[command(after_help = SET_HELP)]
    Set(ConfigSet),
    /// Change a value in an editor: `$VISUAL`, `$EDITOR` or vi
    #[command(after_help = EDIT_HELP)]
    Edit(ConfigEdit),
    /// Delete a value; exit with 1 if it is absent
    #[command(after_help = "Example:\n  enlist config delete app/log.toml --expect 12")]
    Delete(ConfigDelete),
    /// List values
    #[command(after_help = "Example:\n  enlist config list app --output json")]
    List(ConfigList),
    /// Follow values, and run a command on change
    #[command(after_help = WATCH_HELP)]
    Watch(ConfigWatch),
    /// Show the differences between two versions of a value, or between files and stored values
    #[command(after_help = DIFF_HELP)]
    Diff(ConfigDiff),
    /// List the versions of a value, the newest first, as far as the store keeps them
    #[command(after_help = "Example:\n  enlist config history app/log.toml --limit 3")]
    History(ConfigHistory),
    /// Write the files of a directory as values
    #[command(after_help = IMPORT_HELP)]
    Import(ConfigImport),
    /// Write values as the files of a directory
    #[command(after_help = "Example:\n  enlist config export config --below app")]
    Export(ConfigExport),
}

#[derive(Args, Debug)]
pub(crate) struct ConfigGet {
    /// Path of the value
    pub(crate) path: String,
    /// Show the version of this revision, if the store still has it
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigSet {
    /// Path of the value
    pub(crate) path: String,
    /// Value; `-` for the standard input. A value that begins with a hyphen comes after `--`
    #[arg(allow_negative_numbers = true, required_unless_present = "file")]
    pub(crate) value: Option<HiddenValue>,
    /// File with the value; `-` for the standard input
    #[arg(long, conflicts_with = "value")]
    pub(crate) file: Option<PathBuf>,
    /// Write only if the stored revision is this one; 0: only if there is no value
    #[arg(long, value_name = "REVISION")]
    pub(crate) expect: Option<u64>,
    /// Write only if there is no value
    #[arg(long, conflicts_with = "expect")]
    pub(crate) create: bool,
    #[command(flatten)]
    pub(crate) check: CheckOption,
}

/// A value on the command line. `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct HiddenValue(pub(crate) OsString);

impl From<OsString> for HiddenValue {
    fn from(value: OsString) -> Self {
        Self(value)
    }
}

impl fmt::Debug for HiddenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hidden.fmt(f)
    }
}

/// Check of the content.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CheckOption {
    /// Accept values that do not parse as JSON or TOML although their path ends in .json or .toml
    #[arg(long = "no-check")]
    pub(crate) none: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigEdit {
    /// Path of the value
    pub(crate) path: String,
    #[command(flatten)]
    pub(crate) check: CheckOption,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigDelete {
    /// Path of the value
    pub(crate) path: String,
    /// Delete only if the stored revision is this one
    #[arg(long, value_name = "REVISION")]
    pub(crate) expect: Option<u64>,
    /// Also delete all values below the path
    #[arg(long, conflicts_with = "expect")]
    pub(crate) recursive: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigList {
    /// List the values below this path only
    #[arg(value_name = "PREFIX")]
    pub(crate) below: Option<String>,
    /// Show the values as well
    #[arg(long)]
    pub(crate) values: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigHistory {
    /// Path of the value
    pub(crate) path: String,
    /// Maximum number of versions
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub(crate) limit: usize,
    /// Show the values as well
    #[arg(long)]
    pub(crate) values: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigWatch {
    /// Path of one value, or with a final `/` of all values below it; default: all values of the namespace
    pub(crate) path: Option<String>,
    /// Print the values as well
    #[arg(long)]
    pub(crate) values: bool,
    /// Replace this file by each new value. It keeps its content if the value is deleted
    #[arg(long, value_name = "FILE", requires = "path")]
    pub(crate) write_to: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) check: CheckOption,
    /// Start COMMAND once, and send it this signal at each change; its end ends the watch
    #[arg(long, ignore_case = true, requires = "command")]
    pub(crate) signal: Option<ReloadSignal>,
    /// Do not run COMMAND before the first change
    #[arg(long, conflicts_with = "signal", requires = "command")]
    pub(crate) postpone: bool,
    /// Minimum time between two runs or signals
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "50ms")]
    pub(crate) debounce: Duration,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum ReloadSignal {
    Hup,
    Usr1,
    Usr2,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigDiff {
    /// Path of the value; default: the versions before and after its last change
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    pub(crate) path: Option<String>,
    /// Revision of the older version; default: the one before the newer version
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["file", "dir"])]
    pub(crate) from: Option<u64>,
    /// Revision of the newer version; default: the stored value
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["file", "dir"])]
    pub(crate) to: Option<u64>,
    /// Compare the stored value with this file; `-` for the standard input
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Compare the stored values with the files of this directory
    #[arg(long, conflicts_with = "file")]
    pub(crate) dir: Option<PathBuf>,
    /// Compare the values below this path only, with --dir
    #[arg(long, value_name = "PATH", requires = "dir", conflicts_with = "path")]
    pub(crate) below: Option<String>,
    /// Exit with 1 if there are differences
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigImport {
    /// Directory; `-` for the output of `export -` on the standard input
    pub(crate) dir: PathBuf,
    /// Path below which the values are stored; default: the namespace
    #[arg(long, value_name = "PATH")]
    pub(crate) below: Option<String>,
    /// Show the changes without writing anything
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Delete stored values for which there is no file
    #[arg(long)]
    pub(crate) delete: bool,
    #[command(flatten)]
    pub(crate) check: CheckOption,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigExport {
    /// Directory, which is created; `-` for one JSON object per value on the standard output. Other files in it stay
    pub(crate) dir: PathBuf,
    /// Export the values below this path only
    #[arg(long, value_name = "PATH")]
    pub(crate) below: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Cli;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["enlist", "config"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn a_value_on_the_command_line_is_not_printed() {
        let shown = format!("{:?}", parsed("set app/password s3cret").unwrap());
        assert!(!shown.contains("s3cret") && shown.contains("app/password"), "{shown}");
    }

    /// An argument with the name of a global option would set that as well.
    #[test]
    fn no_argument_has_the_name_of_a_global_option() {
        use clap::CommandFactory;
        let mut command = Cli::command();
        command.build();
        let globals: Vec<_> = command.get_arguments().map(|argument| argument.get_id().clone()).collect();
        let config = command.find_subcommand("config").unwrap();
        for own in config.get_subcommands().flat_map(clap::Command::get_arguments) {
            let is_global = own.is_global_set() || ["help", "version"].contains(&own.get_id().as_str());
            assert!(is_global || !globals.contains(own.get_id()), "{}", own.get_id());
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for accepted in [
            "set a -1",
            "set a -",
            "set a -- -x",
            "set a --file f",
            "set a v --expect 0",
            "watch -- true",
            "watch a --signal hup -- true",
            "watch a --write-to f",
            "diff a --from 1 --to 2",
            "diff --dir d --below a",
            "export -",
            "import -",
        ] {
            assert!(parsed(accepted).is_ok(), "{accepted}");
        }
        for refused in [
            "set a",
            "set a v --file f",
            "set a v --expect 1 --create",
            "delete a --expect 1 --recursive",
            "watch --signal HUP",
            "watch --write-to f",
            "watch a --postpone --signal HUP -- true",
            "watch a --signal KILL -- true",
            "diff",
            "diff a --dir d",
            "diff a --file f --from 1",
            "diff a --below b",
        ] {
            assert!(parsed(refused).is_err(), "{refused}");
        }
    }
}
