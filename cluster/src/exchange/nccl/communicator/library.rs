//! Whether the shared libraries are there, with every function that is called: asked before the first call, for `cudarc`
//! panics where a library or a function is missing.
#![allow(unsafe_code, reason = "loading a library runs its initialisers")]

use libloading::os::unix::{Library as Loaded, RTLD_LAZY, RTLD_LOCAL};

use super::NcclError;
use crate::transport::causes;

/// A library, and what is called of it.
pub(super) struct Library {
    what: &'static str,
    /// Files' names, of those that `cudarc` tries.
    names: &'static [&'static str],
    functions: &'static [&'static str],
}

/// NVIDIA's driver.
pub(super) const CUDA: Library = Library {
    what: "the CUDA driver",
    names: &["libcuda.so", "libcuda.so.1"],
    functions: &[
        "cuInit",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuStreamQuery",
        "cuStreamDestroy_v2",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuMemFreeHost",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuGetErrorString",
    ],
};

/// NCCL. (NVIDIA's packages without headers install `libnccl.so.2` alone, a name that `cudarc` does not try.)
pub(super) const NCCL: Library = Library {
    what: "NCCL",
    names: &["libnccl.so"],
    functions: &[
        "ncclGetVersion",
        "ncclGetUniqueId",
        "ncclCommInitRankConfig",
        "ncclCommGetAsyncError",
        "ncclCommAbort",
        "ncclGroupStart",
        "ncclGroupEnd",
        "ncclSend",
        "ncclRecv",
        "ncclGetErrorString",
        "ncclGetLastError",
    ],
};

/// Only looked for where [`NCCL`] is not found, to say what to do.
const NCCL_WITHOUT_LINK: &str = "libnccl.so.2";

impl Library {
    /// Fails unless the library, loaded or linked, has all functions.
    pub(super) fn present(&self) -> Result<(), NcclError> {
        if self.lacking(&Loaded::this()).is_none() {
            return Ok(());
        }
        let mut why = String::new();
        for name in self.names {
            match open(name) {
                Ok(library) => match self.lacking(&library) {
                    None => return Ok(()),
                    // `cudarc` takes the first that loads.
                    Some(function) => return Err(self.missing(format!("{name} has no {function}"))),
                },
                Err(error) if why.is_empty() => why = error,
                Err(_) => {}
            }
        }
        if self.names == NCCL.names && open(NCCL_WITHOUT_LINK).is_ok() {
            why = format!("only {NCCL_WITHOUT_LINK} was found: make {} a link to it", NCCL.names[0]);
        }
        Err(self.missing(why))
    }

    /// The first function that `library` lacks.
    fn lacking(&self, library: &Loaded) -> Option<&'static str> {
        let is_there = |function: &str| {
            // SAFETY: the symbol is looked up and not used.
            unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) }.is_ok()
        };
        self.functions.iter().copied().find(|function| !is_there(function))
    }

    fn missing(&self, why: String) -> NcclError {
        NcclError::Missing { library: self.what, names: self.names.join(", "), why }
    }
}

fn open(name: &str) -> Result<Loaded, String> {
    // SAFETY: the libraries of these names have initialisers made to be run by any program that links them.
    unsafe { Loaded::open(Some(name), RTLD_LAZY | RTLD_LOCAL) }.map_err(|error| causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_was_looked_for() {
        let nowhere = Library { what: "nothing", names: &["libnosuch.so", "libnosuch.so.1"], functions: &["no_such"] };
        let error = nowhere.present().expect_err("no such library").to_string();
        for part in ["nothing cannot be used", "libnosuch.so: ", "looked for libnosuch.so, libnosuch.so.1"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_library_that_lacks_a_function_is_named_with_it() {
        let libc = Library { what: "C", names: &["libc.so.6"], functions: &["malloc", "no_such_function"] };
        let error = libc.present().expect_err("no such function").to_string();
        assert!(error.contains("libc.so.6 has no no_such_function"), "{error}");
    }

    #[test]
    fn what_is_linked_need_not_be_found() {
        let linked = Library { what: "C", names: &["libnosuch.so"], functions: &["malloc"] };
        assert_eq!(linked.present(), Ok(()));
    }
}
