//! A value in a memory file that nobody can change any more, this process included.
//!
//! The file has no name and no place in any file system. One holds a generation of a credential however often it is handed
//! over, so that clients who keep what they were given make nobody else pay for it. Each client gets a descriptor of its
//! own, for reading, with a position of its own. The pages are the kernel's to free once the last descriptor is closed: what
//! a client was given it may keep, as whatever it has read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fender_identity::Secret;
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags};

use crate::deliver::DeliveryError;

/// As the kernel shows it in `/proc/PID/maps`; which credential it is, it does not say.
const LABEL: &str = "fender-credential";

/// What no holder of a descriptor can do: lift a seal, shrink, grow or write.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A sealed value.
#[derive(Debug)]
pub(crate) struct Sealed {
    file: OwnedFd,
    length: u64,
}

impl Sealed {
    pub(crate) fn new(value: &Secret) -> Result<Self, DeliveryError> {
        let failed = |action| move |error: io::Error| DeliveryError::Unsealed { action, error };
        let file = create().map_err(failed("make a memory file"))?;
        write_all(&file, value.expose()).map_err(failed("write to a memory file"))?;
        let seal = || {
            // Who holds a descriptor reads by it, however it is opened again; nobody has a reason to open it otherwise.
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
            rustix::fs::fcntl_add_seals(&file, SEALS)
        };
        seal().map_err(|errno| failed("seal a memory file")(errno.into()))?;
        let sealed = Self {
            file,
            length: value.len() as u64,
        };
        // What cannot be opened now could not be handed over later.
        let file = sealed.open().map_err(failed(
            "open a memory file once more (`/proc` must be mounted)",
        ))?;
        Ok(Self { file, ..sealed })
    }

    /// In bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// What it holds.
    pub(crate) fn secret(&self) -> Result<Secret, &'static str> {
        read(&self.file, self.length)
    }

    /// The same file once more: for reading, at its beginning, and independent of every other descriptor of it.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }
}

/// Not inherited by programs, and none itself where the kernel can promise that.
fn create() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(LABEL, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(LABEL, flags)?),
        made => Ok(made?),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What a descriptor that was handed over holds, if it is what it must be: a file of this length that nobody can change
/// while it is read.
pub(crate) fn read(file: impl AsFd, length: u64) -> Result<Secret, &'static str> {
    const UNREADABLE: &str = "it cannot be read";
    let stat = rustix::fs::fstat(&file).map_err(|_| UNREADABLE)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() || u64::try_from(stat.st_size) != Ok(length)
    {
        return Err("it is no file of the length that was said");
    }
    // Files that know no seals answer with an error.
    let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| "it is no memory file")?;
    if !seals.contains(SEALS) {
        return Err("it is not sealed");
    }
    let length = usize::try_from(length).map_err(|_| UNREADABLE)?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(&file, rest, filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    // Wiped, also where it is only a part.
    let value = Secret::new(bytes);
    match filled == length {
        true => Ok(value),
        false => Err(UNREADABLE),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};

    use rustix::io::Errno;

    use super::*;

    fn sealed(text: &str) -> Sealed {
        Sealed::new(&Secret::from(text.to_owned())).unwrap()
    }

    #[test]
    fn every_descriptor_reads_the_whole_value_from_its_beginning() {
        let sealed = sealed("s3cret");
        for _ in 0..2 {
            let mut text = String::new();
            File::from(sealed.open().unwrap())
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "s3cret");
        }
        let value = read(sealed.open().unwrap(), 6).unwrap();
        assert_eq!(value.expose(), b"s3cret");
        let flags = rustix::io::fcntl_getfd(sealed.open().unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn attack_a_value_is_not_changed_by_whoever_holds_it() {
        let sealed = sealed("s3cret");
        let held = sealed.open().unwrap();
        assert!(rustix::fs::ftruncate(&held, 0).is_err());
        assert!(rustix::fs::ftruncate(&held, 4096).is_err());
        // Root may open it for writing; nobody may write.
        let again = format!("/proc/self/fd/{}", held.as_raw_fd());
        if let Ok(again) = rustix::fs::open(again, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            assert_eq!(rustix::io::write(&again, b"x"), Err(Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(&again, 1), Err(Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(&again, 4096), Err(Errno::PERM));
            let fewer = SealFlags::FUTURE_WRITE;
            assert_eq!(rustix::fs::fcntl_add_seals(&again, fewer), Err(Errno::PERM));
        }
        // Where one reads is nothing to another.
        let mut moved = File::from(held);
        moved.seek(SeekFrom::End(0)).unwrap();
        assert_eq!(read(sealed.open().unwrap(), 6).unwrap().expose(), b"s3cret");
    }

    #[test]
    fn attack_what_is_not_sealed_or_of_another_length_is_not_read() {
        let sealed = sealed("s3cret");
        for length in [0, 5, 7, u64::MAX] {
            assert!(read(sealed.open().unwrap(), length).is_err(), "{length}");
        }
        let mut plain = tempfile::tempfile().unwrap();
        plain.write_all(b"s3cret").unwrap();
        assert_eq!(read(&plain, 6).unwrap_err(), "it is no memory file");
        let mut open = File::from(create().unwrap());
        open.write_all(b"s3cret").unwrap();
        assert_eq!(read(&open, 6).unwrap_err(), "it is not sealed");
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(read(&ours, 0).is_err());
    }
}
