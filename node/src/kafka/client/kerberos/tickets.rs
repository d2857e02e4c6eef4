//! Tickets from a key table. The safe binding has no call that names the key table and the cache (MIT krb5's
//! credential store extension), and environment variables would be for the whole process, so that two bridges
//! could not log in as two principals: this is that one call.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::Path;
use std::ptr;

use libgssapi::credential::Cred;
use libgssapi::error::{Error, MajorFlags};
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_KRB5_PRINCIPAL, Oid};
use libgssapi_sys::{
    _GSS_C_INDEFINITE, GSS_C_INITIATE, GSS_S_COMPLETE, OM_uint32, gss_OID_desc, gss_OID_set_desc,
    gss_acquire_cred_from, gss_buffer_desc, gss_cred_id_t, gss_cred_usage_t, gss_import_name,
    gss_key_value_element_desc, gss_key_value_set_desc, gss_name_t, gss_release_name,
};

use super::KerberosLogin;
use super::messages::explain;

/// Credentials of a principal, to show them to the broker on `host`. Its tickets are kept in this process's
/// memory, one cache a login, and renewed from the key table when they are near their end. May ask the key
/// distribution centre, and block meanwhile.
pub(super) fn tickets(login: &KerberosLogin, host: &str) -> Result<Cred, String> {
    let keytab = &*login.keytab;
    // The library would say only that it found no credentials.
    std::fs::File::open(Path::new(keytab))
        .map_err(|error| format!("cannot read kerberos_keytab_file {keytab}: {error}"))?;
    let cache = BuildHasherDefault::<DefaultHasher>::default().hash_one(login);
    let c_text = |text: &str| CString::new(text).map_err(|_| format!("a NUL character in {text:?}"));
    let (keytab_value, cache_value) =
        (c_text(&format!("FILE:{keytab}"))?, c_text(&format!("MEMORY:causeway-{cache:x}"))?);
    let name = import(&login.principal)
        .map_err(|error| format!("{}: not a Kerberos principal: {error}", login.principal))?;
    let mut elements = [
        gss_key_value_element_desc { key: c"client_keytab".as_ptr(), value: keytab_value.as_ptr() },
        gss_key_value_element_desc { key: c"ccache".as_ptr(), value: cache_value.as_ptr() },
    ];
    let store = gss_key_value_set_desc { count: 2, elements: elements.as_mut_ptr() };
    let mut mechanism = as_c(&GSS_MECH_KRB5);
    let mut mechanisms = gss_OID_set_desc { count: 1, elements: &raw mut mechanism };
    let mut minor: OM_uint32 = 0;
    let mut credentials: gss_cred_id_t = ptr::null_mut();
    // SAFETY: every pointer is to a value that lives until after the call; the library copies what it keeps.
    let major = unsafe {
        gss_acquire_cred_from(
            &raw mut minor,
            name.0,
            _GSS_C_INDEFINITE,
            &raw mut mechanisms,
            GSS_C_INITIATE as gss_cred_usage_t,
            &raw const store,
            &raw mut credentials,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if major != GSS_S_COMPLETE {
        let error = Error { major: MajorFlags::from_bits_retain(major), minor };
        return Err(format!(
            "no ticket for {} with {keytab}: {}",
            login.principal,
            explain(error, login, host)
        ));
    }
    // SAFETY: the call above made these credentials and nobody else has them.
    Ok(unsafe { Cred::from_c(credentials) })
}

/// A name of the library's, given back when it is dropped.
struct Principal(gss_name_t);

impl Drop for Principal {
    fn drop(&mut self) {
        let mut minor: OM_uint32 = 0;
        // SAFETY: the name came from gss_import_name and is released once.
        unsafe { gss_release_name(&raw mut minor, &raw mut self.0) };
    }
}

fn import(principal: &str) -> Result<Principal, Error> {
    let mut text = gss_buffer_desc { length: principal.len(), value: principal.as_ptr().cast_mut().cast() };
    let mut kind = as_c(&GSS_NT_KRB5_PRINCIPAL);
    let mut minor: OM_uint32 = 0;
    let mut name: gss_name_t = ptr::null_mut();
    // SAFETY: the buffers live until after the call, which reads them and copies what it keeps.
    let major = unsafe { gss_import_name(&raw mut minor, &raw mut text, &raw mut kind, &raw mut name) };
    if major == GSS_S_COMPLETE {
        Ok(Principal(name))
    } else {
        Err(Error { major: MajorFlags::from_bits_retain(major), minor })
    }
}

/// An object identifier as the library takes it; it points into the static bytes of `oid`.
fn as_c(oid: &Oid<'static>) -> gss_OID_desc {
    gss_OID_desc { length: oid.len() as OM_uint32, elements: oid.as_ptr().cast_mut().cast() }
}
