//! The MQTT front: listeners, connections, sessions, router.
