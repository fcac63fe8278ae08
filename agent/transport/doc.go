// Package transport is the agent's way to its appliance: enrolment, the control plane (HTTP/2 over mutual TLS 1.3, one stream of notices
// kept open) and connections for the data plane, which it hands out as wire.Links.
//
// It owns the agent's identity file, which is written whole or not at all. Everything else lives in memory: after a crash the agent
// connects again with its identity. The agent always dials; it trusts nobody but the CA it was enrolled with. The package imports the
// root, ingest/wire and internal/clock; what notices mean is the agent's business.
package transport
