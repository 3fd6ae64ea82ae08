//! A running program: lines in both directions.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::library::Library;
use crate::{driven::resident, measure::Result};

/// Variable with the folder of the programs in Go.
const FOLDER: &str = "ENLIST_PEERS_BIN";

/// Maximum time until a program prints what is awaited.
const LIMIT: Duration = Duration::from_secs(60);

/// A program. Dropping it kills it.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Processor time until it was connected to etcd.
    connected: f64,
}

impl Program {
    /// Starts the program of a library, and waits until it is connected to etcd.
    ///
    /// # Errors
    ///
    /// If it does not start or fails.
    pub(crate) async fn start(library: Library, verb: &str, url: &str, arguments: &[&str]) -> Result<Self> {
        let (name, argument) = library.program(verb);
        let path = match library {
            Library::Ours | Library::Tonic => std::env::current_exe()?.with_file_name(name),
            _ => PathBuf::from(std::env::var_os(FOLDER).ok_or(format!("{FOLDER} is not set"))?).join(name),
        };
        let mut command = Command::new(&path);
        command.arg(argument).args(arguments).env("ENLIST_ENDPOINTS", url);
        // etcd's client in Go logs a line for each request that it repeats.
        command.env("ETCD_CLIENT_DEBUG", "error");
        if path.ends_with("agent") {
            // As in the unit of the agent (`docs/agent-deployment.md`).
            command.env("MALLOC_ARENA_MAX", "1");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", path.display()))?;
        let (input, output) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
        let output = BufReader::new(output).lines();
        let mut program = Self { name: library.name(), child, input, output, connected: 0.0 };
        program.connected = program.until("up").await?.first().copied().ok_or("no processor time")?;
        Ok(program)
    }

    /// Sends a line.
    ///
    /// # Errors
    ///
    /// If the program has ended.
    pub(crate) async fn say(&mut self, line: &str) -> Result {
        let line = format!("{line}\n");
        Ok(self.input.write_all(line.as_bytes()).await.map_err(|error| format!("{}: {error}", self.name))?)
    }

    /// Waits for a line that begins with this word, and returns the numbers after it.
    ///
    /// # Errors
    ///
    /// If the program fails or ends, or none comes in time.
    pub(crate) async fn until(&mut self, word: &str) -> Result<Vec<f64>> {
        let words = self.words(word).await?;
        Ok(words.iter().map(|number| number.parse::<f64>()).collect::<std::result::Result<_, _>>()?)
    }

    /// As [`until`](Self::until), for three numbers.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub(crate) async fn three(&mut self, word: &str) -> Result<[f64; 3]> {
        let numbers = self.until(word).await?;
        <[f64; 3]>::try_from(numbers).map_err(|numbers| format!("{numbers:?} are not three numbers").into())
    }

    /// Waits for a line that begins with this word, and returns the others.
    async fn words(&mut self, word: &str) -> Result<Vec<String>> {
        let reading = async {
            loop {
                let line = self.output.next_line().await?.ok_or("it has ended")?;
                let mut words = line.split_whitespace();
                match words.next() {
                    Some("failed" | "failed:") => return Err(line.into()),
                    Some(first) if first == word => return Result::Ok(words.map(str::to_owned).collect()),
                    _ => {}
                }
            }
        };
        let read = tokio::time::timeout(LIMIT, reading).await;
        let read = read.unwrap_or_else(|_| Err(format!("nothing after {LIMIT:?}").into()));
        read.map_err(|error| format!("{}, waiting for \"{word}\": {error}", self.name).into())
    }

    /// Sends a line, and returns the first number of the answer to it.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub(crate) async fn ask(&mut self, line: &str, answer: &str) -> Result<f64> {
        self.say(line).await?;
        let numbers = self.until(answer).await?;
        Ok(*numbers.first().ok_or("no number")?)
    }

    /// Returns the processor time that the program has used since it was connected, in microseconds.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub(crate) async fn processor_time(&mut self) -> Result<f64> {
        Ok(self.ask("usage", "usage").await? - self.connected)
    }

    /// Returns the memory of the program in bytes.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub(crate) fn resident(&self) -> Result<i64> {
        resident(&self.child.id().ok_or("it has ended")?.to_string())
    }

    /// Waits for the next state of a view: the number of instances, and the address of the one that changes.
    ///
    /// # Errors
    ///
    /// As [`until`](Self::until).
    pub(crate) async fn seen(&mut self) -> Result<(usize, String)> {
        let words = self.words("seen").await?;
        let [count, address] = <[String; 2]>::try_from(words).map_err(|words| format!("{words:?} is no state"))?;
        Ok((count.parse()?, address))
    }

    /// Kills the program, as SIGKILL does, and waits for its end.
    ///
    /// # Errors
    ///
    /// If it cannot be killed.
    pub(crate) async fn kill(mut self) -> Result {
        Ok(self.child.kill().await?)
    }
}
