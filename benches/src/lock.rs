//! One run at a time: two would share the CPUs, and measure each other.

use std::env;
use std::fs::{File, TryLockError};

use anyhow::Result;

/// Held as long as this value lives, also where the process is killed.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until no other run is under way.
    pub fn acquire() -> Result<Self> {
        let path = env::current_exe()?.with_file_name("tinyloop-bench.lock");
        let file = File::create(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another run to end");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(Self { _file: file })
    }
}
