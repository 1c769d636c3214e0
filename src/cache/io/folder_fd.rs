//! The descriptor of a cache folder, to open files relative to it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
#[cfg(target_os = "linux")]
use arc_swap::Guard;

use crate::cache::io::regular;

/// The descriptor of a cache folder. A file is opened relative to it in less time than by its whole path,
/// and not in a folder that has taken the place of this one.
#[derive(Debug)]
pub(crate) struct FolderFd {
    fd: ArcSwapOption<OwnedFd>,
}

impl FolderFd {
    /// Open a folder. Blocks.
    pub(crate) fn open(folder: &Path) -> Self {
        FolderFd {
            fd: ArcSwapOption::new(open(folder)),
        }
    }

    /// Open the folder that is at this path now. Blocks.
    pub(crate) fn renew(&self, folder: &Path) {
        self.fd.store(open(folder));
    }

    /// The descriptor. `None`: the folder could not be opened.
    #[cfg(target_os = "linux")]
    pub(crate) fn get(&self) -> Guard<Option<Arc<OwnedFd>>> {
        self.fd.load()
    }
}

/// Files are opened by their whole paths if this fails.
fn open(folder: &Path) -> Option<Arc<OwnedFd>> {
    let folder = regular::open_folder(folder).ok()?;
    Some(Arc::new(folder.into()))
}
