//! The inputs that fuzzing begins with.

use std::{env, fs, path::Path};

/// Writes the seeds, a file each, into the folder that the environment variable
/// `FUZZ_SEEDS` names; without it, does nothing.
pub fn write(seeds: &[Vec<u8>]) {
    let Some(folder) = env::var_os("FUZZ_SEEDS") else {
        return;
    };
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).expect("create the folder that FUZZ_SEEDS names");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(number.to_string()), seed).expect("write a seed");
    }
}
