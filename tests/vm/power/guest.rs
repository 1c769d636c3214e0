//! The side in the machine: one cycle.

use std::{
    env, fs, panic,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use test_support::{Proxy, Random};

use super::{check, load, objects::Versions, origin::World};

/// The first argument of this program in a machine whose power is cut.
pub const ARGUMENT: &str = "power-in-the-machine";

/// The environment of a cycle, which the kernel hands over.
pub mod variable {
    pub const FILE_SYSTEM: &str = "POWER_FS";
    pub const SEED: &str = "POWER_SEED";
    pub const VERSIONS: &str = "POWER_VERSIONS";
    pub const PURGED: &str = "POWER_PURGED";
    pub const BACKEND: &str = "POWER_BACKEND";
    /// Set if the kernel writes soon what is not synced.
    pub const EAGER: &str = "POWER_EAGER";
    /// Set if there is no load.
    pub const LAST: &str = "POWER_LAST";
}

/// The line after which the load begins.
pub const LOAD: &str = "power: load";

/// The start of the line that says what is wrong.
pub const WRONG: &str = "power: wrong: ";

/// The start of the line with the report of the check.
pub const CHECKED: &str = "power: checked: ";

/// The file system on the disk.
const MOUNTED: &str = "/disk";

/// The load ends without a cut after this time.
const TIME: Duration = Duration::from_secs(120);

/// Runs a cycle. The argument is the proxy.
pub fn run() -> ExitCode {
    panic::set_hook(Box::new(|what| println!("{WRONG}{what}")));
    match cycle() {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            println!("{WRONG}{wrong}");
            ExitCode::FAILURE
        }
    }
}

fn cycle() -> Result<(), String> {
    mount();
    let seed = env::var(variable::SEED)
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut random = Random::new(seed.expect("a seed"));
    let purged = Versions::from_variable(variable::PURGED);
    let world = World::new(&Versions::from_variable(variable::VERSIONS), &purged);
    let origin = world.start();
    let folder = Path::new(MOUNTED).join("cache");
    let binary = env::args().nth(2).expect("the proxy");
    let mut proxy = Proxy::start_with(binary, |_| {
        format!(
            "server: {{address: '127.0.0.1:0', threads: 2, grace_period: 0s}}\n\
             buckets: [{{path_prefix: /power, bucket: power, region: us-east-1, endpoint: '{}'}}]\n\
             cache:\n  \
               stale_if_error: 1d\n  \
               memory: {{max_size_mb: 1}}\n  \
               disk: {{path: '{}', max_size_gb: {}, backend: {}}}\n\
             metrics: {{address: '127.0.0.1:0'}}\n\
             admin: {{address: '127.0.0.1:0'}}\n",
            origin.url(),
            folder.display(),
            check::MAX_SIZE as f64 / 1e9,
            env::var(variable::BACKEND).expect("a backend"),
        )
    });
    let checked = check::check(&proxy, &folder, &world, &purged);
    let report = checked.map_err(|wrong| format!("{wrong}\n{}", proxy.stderr()))?;
    let figures = [
        report.entries,
        report.blocks,
        report.banned,
        report.served,
        report.bytes,
    ];
    println!(
        "{CHECKED}{}",
        figures.map(|figure| figure.to_string()).join(" ")
    );
    if env::var_os(variable::LAST).is_none() {
        world.come_back();
        println!("{LOAD}");
        load::run(&proxy, &world, &mut random, TIME)
            .map_err(|wrong| format!("{wrong}\n{}", proxy.stderr()))?;
    }
    proxy.stop_gracefully();
    Ok(())
}

fn mount() {
    let file_system = env::var(variable::FILE_SYSTEM).expect("a file system");
    let is_eager = env::var_os(variable::EAGER).is_some();
    let options = match (&*file_system, is_eager) {
        ("ext4", true) => "commit=1",
        _ => "rw",
    };
    fs::create_dir(MOUNTED).expect("make the mount point");
    let mounted = Command::new("mount")
        .args(["-t", &file_system, "-o", options, "/dev/vdb", MOUNTED])
        .status();
    assert!(
        mounted.is_ok_and(|status| status.success()),
        "mount the {file_system} of /dev/vdb"
    );
    if is_eager {
        // proc(5): in hundredths of a second.
        for (name, value) in [
            ("dirty_expire_centisecs", "50"),
            ("dirty_writeback_centisecs", "20"),
        ] {
            fs::write(format!("/proc/sys/vm/{name}"), value).expect("set a limit of dirty pages");
        }
        if file_system == "xfs" {
            fs::write("/proc/sys/fs/xfs/xfssyncd_centisecs", "100").expect("set XFS's interval");
        }
    }
}
