//! Versioned, size-limited frames of the admin link.
