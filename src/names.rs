//! Names of hosts and users in a program that is linked statically to glibc: there, what /etc/nsswitch.conf asks for beside
//! files and DNS is loaded from the host, with a C library of another version than the program's own; at best that fails.

/// The databases that mqspan asks: hosts for a backend's address, the others for `--user`.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
const DATABASES: [(&std::ffi::CStr, &std::ffi::CStr); 4] =
    [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files"), (c"initgroups", c"files")];

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
unsafe extern "C" {
    /// Says in the stead of /etc/nsswitch.conf who is asked (nss.h of glibc).
    fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
}

/// Asks only what is built into the C library where it is part of the program. To be called before there is any other thread.
pub fn ask_built_in() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    for (database, services) in DATABASES {
        // SAFETY: both are strings that last, and no other thread asks meanwhile. What it is refused stays as it is.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
