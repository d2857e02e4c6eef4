//! Configuration: HOCON text into checked structs.
