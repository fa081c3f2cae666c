//! `lab`: the demo and the benchmarks.

mod bench;
mod crash;
mod demo;
mod down;
mod replay;
mod trial;
mod wan;

use std::panic;
use std::process::ExitCode;
use std::sync::mpsc;

const USAGE: &str = "\
usage: lab COMMAND [OPTION]...

  demo         start three nodes under load and add a fourth
               --rows N     rows to begin with (1000000)
  demo-down    stop and remove what demo left running
  demo-crash   let a node die, and make its survivors equal
  bench-join   time a join beside other ways to copy a database
               --scale N    size in units of about 100 MB (10, or SCALE from the environment)
               --rounds N   rounds (3)
  bench-recover
               time a recovery beside PostgreSQL's own apply worker
               --scale N    transactions in units of 5000 (10, or SCALE from the environment)
               --rounds N   rounds (3)
  bench-wan    time calls between servers that are far from each other
               --rounds N   rounds (3)
  trial        let everything happen to clusters, at random; Spock's where --spock is given
               --seed N     the same seed gives the same schedules (1, or SEED from the environment)
               --minutes N  how long (5, or MINUTES)
               --rounds N   so many rounds instead
               --round N    this round alone
               --without A  without the action of this name; may be repeated
               --shrink N   minutes to look for a smaller schedule that fails (5)

The servers are those of ZODAN_PG_CONFIG, else PG_CONFIG, else pg_config on the PATH.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = arguments.first().map(String::as_str).unwrap_or_default();
    let run: fn(&Options) -> bool = match command {
        "demo" => demo::run,
        "demo-down" => down::run,
        "demo-crash" => crash::run,
        "bench-join" => bench::run,
        "bench-recover" => replay::run,
        "bench-wan" => wan::run,
        "trial" => trial::run,
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        "" => return refuse("a command is needed"),
        _ => return refuse(&format!("there is no command {command:?}")),
    };
    let options = match Options::parse(command, &arguments[1..]) {
        Ok(options) => options,
        Err(reason) => return refuse(&reason),
    };
    // The library panics with the reason when something fails. To somebody who runs a command that is an
    // error message; the place in our source is noise, and the servers' logs belong above it, not below.
    let (reasons, reason) = mpsc::channel();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("for an unknown reason");
        let _ = reasons.send(text.to_string());
    }));
    match panic::catch_unwind(|| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => {
            // The first one; threads that waited for each other follow with their own.
            eprintln!(
                "\n{command} failed: {}",
                reason.try_recv().unwrap_or_default()
            );
            if command == "demo" {
                demo::explain_failure();
            }
            ExitCode::FAILURE
        }
    }
}

fn refuse(reason: &str) -> ExitCode {
    eprint!("lab: {reason}\n\n{USAGE}");
    ExitCode::from(2)
}

/// What the command line asks for.
struct Options {
    rows: u64,
    scale: u64,
    rounds: usize,
    seed: u64,
    minutes: u64,
    /// So many rounds of a trial, if not 0.
    trials: u64,
    round: Option<u64>,
    without: Vec<String>,
    shrink_minutes: u64,
    spock: bool,
}

impl Options {
    fn parse(command: &str, arguments: &[String]) -> Result<Options, String> {
        let mut options = Options {
            rows: 1_000_000,
            scale: 10,
            rounds: 3,
            seed: 1,
            minutes: 5,
            trials: 0,
            round: None,
            without: vec![],
            shrink_minutes: 5,
            spock: false,
        };
        for (name, option) in [
            ("SCALE", &mut options.scale),
            ("SEED", &mut options.seed),
            ("MINUTES", &mut options.minutes),
        ] {
            if let Ok(value) = std::env::var(name) {
                *option = number(name, &value)?;
            }
        }
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            if (command, &**name) == ("trial", "--spock") {
                options.spock = true;
                continue;
            }
            if (command, &**name) == ("trial", "--without") {
                let action = rest.next().ok_or("--without needs the name of an action")?;
                options.without.push(action.clone());
                continue;
            }
            let text = rest
                .next()
                .ok_or_else(|| format!("{name} needs a number"))?;
            let value = || number(name, text);
            let from_zero = || {
                text.parse()
                    .map_err(|_| format!("{name} is {text:?}, not a number"))
            };
            match (command, &**name) {
                ("demo", "--rows") => options.rows = value()?,
                ("bench-join" | "bench-recover", "--scale") => options.scale = value()?,
                ("bench-join" | "bench-recover" | "bench-wan", "--rounds") => {
                    options.rounds = value()? as usize
                }
                ("trial", "--seed") => options.seed = from_zero()?,
                ("trial", "--minutes") => options.minutes = value()?,
                ("trial", "--rounds") => options.trials = value()?,
                ("trial", "--round") => options.round = Some(from_zero()?),
                ("trial", "--shrink") => options.shrink_minutes = from_zero()?,
                _ => return Err(format!("{command} knows no {name:?}")),
            }
        }
        Ok(options)
    }
}

fn number(name: &str, value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{name} is {value:?}, not a positive number")),
    }
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let parse = |command: &str, line: &str| {
            let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
            Options::parse(command, &words)
        };
        let options = parse("bench-join", "--scale 3 --rounds 5").unwrap();
        assert_eq!((options.scale, options.rounds), (3, 5));
        assert!(parse("demo", "--rows 10").is_ok_and(|options| options.rows == 10));
        assert!(parse("demo", "--rows").is_err_and(|e| e == "--rows needs a number"));
        assert!(parse("demo", "--rows ten").is_err_and(|e| e.contains("\"ten\"")));
        assert!(parse("demo", "--rows 0").is_err());
        assert!(parse("demo-down", "--rows 1").is_err_and(|e| e.contains("demo-down knows no")));
    }

    #[test]
    fn grouping() {
        assert_eq!(
            [0, 12, 123, 1234, 1_234_567].map(grouped),
            ["0", "12", "123", "1,234", "1,234,567"]
        );
    }
}
