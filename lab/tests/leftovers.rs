//! What a killed process leaves behind: nothing that runs, and nothing on the disk for long.

use lab::Server;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TELL: &str = "server: ";

#[test]
#[ignore = "the victim of the other test, which runs it in a process of its own"]
fn victim() {
    let server = Server::start("n1");
    println!("\n{TELL}{} {}", server.pid(), server.data_dir().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_process_takes_its_servers_along() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "victim", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().strip_prefix(TELL).map(String::from))
        .unwrap();
    let (pid, data) = told.split_once(' ').unwrap();
    let (process, data) = (Path::new("/proc").join(pid), PathBuf::from(data));
    assert!(process.exists() && data.join("PG_VERSION").exists());
    victim.kill().unwrap();
    victim.wait().unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    while runs(&process) {
        assert!(Instant::now() < deadline, "server {pid} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(Server::start("n1"));
    assert!(!data.exists(), "{}", data.display());
}

/// Not a zombie: where nobody collects orphans, as in many containers, a dead one stays listed.
fn runs(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}
