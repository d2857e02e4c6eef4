//! The way in: group member and fetchers.
