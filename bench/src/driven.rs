//! Programs that another one drives by lines, as those in Go (`testkit/interop-go/common/bench`): each does the next
//! thing when it reads a line, prints the outcome, and ends with its input, or after its longest life.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin, stdin};

use crate::measure::{Result, processor_time};

/// Longest life of the program, in case nothing ends it.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Runs the program, and ends the process.
pub async fn run(commands: impl Future<Output = Result>) -> ! {
    let outcome = tokio::time::timeout(LIFETIME, commands).await;
    if let Err(error) = outcome.unwrap_or_else(|_| Err("it has run for too long".into())) {
        println!("failed: {error}");
    }
    // The peers do not clean up either.
    std::process::exit(0);
}

/// Lines of the driving program.
#[derive(Debug)]
pub struct Input(Lines<BufReader<Stdin>>);

impl Default for Input {
    fn default() -> Self {
        Self(BufReader::new(stdin()).lines())
    }
}

impl Input {
    /// Waits for a line. Its end is that of the program.
    ///
    /// # Errors
    ///
    /// If the input cannot be read.
    pub async fn line(&mut self) -> Result<String> {
        match self.0.next_line().await? {
            Some(line) => Ok(line),
            None => std::process::exit(0),
        }
    }

    /// States that the program is connected, and waits for the line that begins the measurement.
    ///
    /// # Errors
    ///
    /// If the input cannot be read.
    pub async fn go(&mut self) -> Result {
        println!("up {:.0}", processor_time());
        self.line().await?;
        Ok(())
    }

    /// Answers requests for the use of the processor.
    ///
    /// # Errors
    ///
    /// If a request is another one, or the input cannot be read.
    pub async fn answer(&mut self) -> Result {
        loop {
            let request = self.line().await?;
            answer(&request, 0)?;
        }
    }
}

/// Answers a request for the use of the processor, or of memory beyond that of `before`, in bytes.
///
/// # Errors
///
/// If it is another request.
pub fn answer(request: &str, before: i64) -> Result {
    match request {
        "usage" => println!("usage {:.0}", processor_time()),
        "memory" => println!("memory {}", resident("self")? - before),
        _ => return Err(format!("no such request: {request}").into()),
    }
    Ok(())
}

/// Returns the memory of a process in bytes.
///
/// # Errors
///
/// If there is no such process.
pub fn resident(process: &str) -> Result<i64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages: i64 = text.split_whitespace().nth(1).ok_or("no second number")?.parse()?;
    Ok(pages * i64::try_from(rustix::param::page_size())?)
}
