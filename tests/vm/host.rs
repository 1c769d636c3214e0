//! The side that boots the machines.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use tempfile::TempDir;

use crate::{guest, power};

/// The kernels, by the name of their folder.
const KERNELS: [(&str, guest::Kernel); 2] = [
    ("stable", guest::Kernel::Stable),
    ("rekey", guest::Kernel::Rekey),
];

/// Programs of the system that the tests run.
const PROGRAMS: [&str; 4] = ["curl", "nginx", "openssl", "strace"];

pub fn run() -> ExitCode {
    let required = env::var_os("REQUIRE_VM").is_some();
    let folder = match folder() {
        Ok(folder) => folder,
        Err(why) if required => {
            eprintln!("tests in a virtual machine: {why}");
            return ExitCode::FAILURE;
        }
        Err(why) => {
            println!("skipped: tests in a virtual machine: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let ours = Ours::new();
    if env::var_os("VM_COUNT").is_some() {
        count(&folder.join(KERNELS[0].0), &ours);
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    // With `POWER_CUTS`, nothing else runs.
    let kernels = if power::cuts().is_some() {
        &[]
    } else {
        &KERNELS[..]
    };
    for (name, kernel) in kernels {
        println!("\nkernel {name}");
        let (p, f) = test(&folder.join(name), *kernel, &ours);
        passed += p;
        failed += f;
    }
    println!("\npower cuts");
    let (p, f) = power::run(&ours.machine(&folder.join(KERNELS[0].0)));
    passed += p;
    failed += f;
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The folder of `tests/vm/install`.
fn folder() -> Result<PathBuf, String> {
    const INSTALL: &str = "run tests/vm/install FOLDER and set VM=FOLDER";
    let folder = env::var_os("VM").ok_or_else(|| INSTALL.to_owned())?;
    let folder = PathBuf::from(folder);
    for (kernel, _) in KERNELS {
        if !folder.join(kernel).join("vmlinuz").exists() {
            return Err(format!(
                "there is no kernel {kernel} in {}; {INSTALL}",
                folder.display()
            ));
        }
    }
    for program in
        PROGRAMS
            .iter()
            .chain(&power::PROGRAMS)
            .chain(&["qemu-system-x86_64", "go", "strip"])
    {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", program])
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(format!("{program} is missing; {INSTALL}"));
        }
    }
    Ok(folder)
}

/// A static program, so that it needs nothing else in the machine.
fn build_go_client(to: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/client.go");
    let status = Command::new("go")
        .args(["build", "-o"])
        .arg(to)
        .arg(source)
        .env("CGO_ENABLED", "0")
        .status()
        .expect("run go");
    assert!(status.success(), "go build {source}");
}

/// Copies a program without its symbols: what is read from the emulated disk takes time.
fn strip(program: &Path, to: &Path) {
    let status = Command::new("strip")
        .arg("-o")
        .args([to, program])
        .status()
        .expect("run strip");
    assert!(status.success(), "strip {}", program.display());
}

/// Programs of ours in a machine: this one, the proxy, and Go's client.
struct Ours {
    vm: PathBuf,
    proxy: PathBuf,
    go: PathBuf,
    // They are gone with it.
    work: TempDir,
}

impl Ours {
    fn new() -> Self {
        let work = TempDir::with_prefix("vm-test-").expect("make a directory");
        let proxy = env::var_os("VM_PROXY").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_s3-proxy")),
            PathBuf::from,
        );
        let ours = Self {
            vm: work.path().join("vm"),
            proxy: work.path().join("s3-proxy"),
            go: work.path().join("go-client"),
            work,
        };
        strip(&env::current_exe().expect("this program"), &ours.vm);
        strip(&proxy, &ours.proxy);
        build_go_client(&ours.go);
        ours
    }

    /// A machine whose power is cut.
    fn machine(&self, kernel: &Path) -> power::Machine {
        let machine = power::Machine {
            kernel: kernel.to_owned(),
            folder: self.work.path().join("machine"),
        };
        let [vm, proxy] = [&self.vm, &self.proxy].map(|path| path.display().to_string());
        let made = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/boot"))
            .arg(kernel)
            .args([&vm, power::ARGUMENT, &proxy])
            .env("VM_MACHINE", &machine.folder)
            .env("VM_MODULES", "xfs")
            .env("VM_PROGRAMS", format!("{vm} {proxy}"))
            .status();
        assert!(made.is_ok_and(|status| status.success()), "make a machine");
        machine
    }

    /// A machine that runs this program.
    fn boot(&self, kernel: &Path, argument: &str, which: guest::Kernel) -> Command {
        let ours = [&self.vm, &self.proxy, &self.go].map(|path| path.display().to_string());
        let mut machine = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/boot"));
        machine.arg(kernel);
        if let Ok(mib) = env::var(guest::LARGE_MIB) {
            machine.args(["env", &format!("{}={mib}", guest::LARGE_MIB)]);
        }
        let seconds = env::var("VM_SECONDS").unwrap_or_else(|_| "900".to_owned());
        machine
            .args([&ours[0], argument, which.name(), &ours[1], &ours[2]])
            .env(
                "VM_PROGRAMS",
                format!("{} {}", PROGRAMS.join(" "), ours.join(" ")),
            )
            .env("VM_SECONDS", seconds);
        machine
    }
}

/// Runs the tests in a machine. Returns how many passed and failed.
fn test(kernel: &Path, which: guest::Kernel, ours: &Ours) -> (usize, usize) {
    let mut machine = ours
        .boot(kernel, guest::ARGUMENT, which)
        .stdout(Stdio::piped())
        .spawn()
        .expect("run tests/vm/boot");
    let console = BufReader::new(machine.stdout.take().expect("its output"));
    let (mut passed, mut failed, mut exit) = (0, 0, None);
    for line in console.split(b'\n') {
        let line = line.expect("read the console");
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if line.starts_with("test ") && line.contains(" ... ok") {
            passed += 1;
        }
        if line.starts_with("test ") && line.contains(" ... FAILED") {
            failed += 1;
        }
        if let Some(status) = line.strip_prefix("vm: exit ") {
            exit = Some(status.to_owned());
        }
    }
    machine.wait().expect("wait for the machine");
    let all = guest::tests(which).len();
    if passed != all || exit.as_deref() != Some("0") {
        println!("{passed} of {all} tests passed, exit status {exit:?}");
        failed = (all - passed.min(all)).max(1);
    }
    (passed, failed)
}

/// Prints the instructions a byte of a hit.
fn count(kernel: &Path, ours: &Ours) {
    let work = TempDir::with_prefix("vm-count-").expect("make a directory");
    let (plugin, counts) = (work.path().join("count.so"), work.path().join("counts"));
    let built = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&plugin)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/count.c"))
        .status();
    assert!(built.is_ok_and(|status| status.success()), "build count.c");
    let machine = ours
        .boot(kernel, guest::COUNT, guest::Kernel::Stable)
        .env(
            "VM_PLUGIN",
            format!("{},out={}", plugin.display(), counts.display()),
        )
        .status();
    assert!(
        machine.is_ok_and(|status| status.success()),
        "run tests/vm/boot"
    );
    let counts = fs::read_to_string(&counts).expect("read the counts");
    let counts: Vec<Vec<f64>> = counts
        .lines()
        .map(|line| {
            line.split(' ')
                .map(|n| n.parse().expect("a count"))
                .collect()
        })
        .collect();
    assert_eq!(counts.len(), 2 * guest::COUNTED_CHOICES.len(), "{counts:?}");
    println!(
        "instructions a byte of a hit of {} bytes, on the proxy's processor",
        guest::COUNTED
    );
    for (choice, marks) in guest::COUNTED_CHOICES.iter().zip(counts.chunks(2)) {
        // Behind those of processor 0.
        let [kernel, user] = [2, 3].map(|i| (marks[1][i] - marks[0][i]) / guest::COUNTED as f64);
        println!("ktls: {choice:3}  {user:.2} in the proxy, {kernel:.2} in the kernel");
    }
}
