//! Pins the libpq of the server that is built for. A backend that loads us would otherwise resolve
//! libpq.so.5 through the loader's default path, where an older major version may lie, or none; and
//! so would the unit tests.

fn main() {
    println!("cargo::rerun-if-env-changed=PQ_LIB_DIR");
    if let Ok(dir) = std::env::var("PQ_LIB_DIR") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{dir},--enable-new-dtags");
    }
}
