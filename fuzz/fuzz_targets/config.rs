//! A configuration is read, or refused without the values of variables; what is read is
//! printed so that it is read again.

#![no_main]

mod seeds;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pingora_sendfile::config::Config;

/// The value of every variable: one that YAML would not leave alone.
const VALUE: &str = "*s3cret:[\"#";

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse(text) {
        Ok(config) => {
            let yaml = config.to_yaml();
            let again = parse(&yaml).unwrap_or_else(|e| panic!("{yaml}\n{e}"));
            assert_eq!(again.to_yaml(), yaml);
        }
        Err(e) => {
            let said = e.to_string();
            assert!(!said.contains(VALUE), "{said}");
            assert!(!e.mistakes().is_empty());
            assert_eq!(said.lines().count(), e.mistakes().len(), "{said}");
        }
    }
});

fn parse(text: &str) -> Result<Config, pingora_sendfile::config::ConfigError> {
    Config::parse(text, Path::new("proxy.yaml"), &|_| Some(VALUE.into()))
}

fn examples() -> Vec<Vec<u8>> {
    let least = "server: {address: '[::1]:0', write_timeout: &a 1s, grace_period: *a}\n\
                 buckets: [{path_prefix: /, bucket: abc, region: no, access_key: '${K}', secret_key: '$${k}'}]\n\
                 cache: {disk: {path: '${P}', backend: uring, max_size_gb: 0.5}}\n";
    vec![
        include_bytes!("../../config.yaml.example").to_vec(),
        least.into(),
        b"a: 1\n---\n? b\n: !!str |\n  c\n".to_vec(),
    ]
}
