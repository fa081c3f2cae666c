//! Children that die with this process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, mpsc};

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` so that the kernel sends it SIGQUIT (an immediate shutdown) when this process ends, however it ends.
///
/// The kernel watches the *thread* that forked, not the process. Test threads and the threads that start a
/// cluster in parallel come and go, so one thread that stays does all the forking.
pub(crate) fn with_this_process(mut command: Command) -> io::Result<Child> {
    // SAFETY: prctl is async-signal-safe, and so is everything else between fork and exec here.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    let (answer, child) = mpsc::channel();
    spawner()
        .lock()
        .unwrap()
        .send((command, answer))
        .expect("the spawning thread lives as long as the process");
    child
        .recv()
        .expect("the spawning thread answers every order")
}

/// Starts `command` in a session of its own, to go on after this process.
pub(crate) fn beyond_this_process(mut command: Command) -> io::Result<Child> {
    // SAFETY: setsid is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    command.spawn()
}

fn spawner() -> &'static Mutex<mpsc::Sender<Order>> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("lab spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // Whoever asked may have given up; then the child is nobody's and must not stay.
                    if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                }
            })
            .expect("start the spawning thread");
        Mutex::new(orders)
    })
}
