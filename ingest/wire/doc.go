// Package wire is the protocol between agent and appliance.
//
// It owns the frames and messages of the bulk data protocol, the link that carries them (ordered, acknowledged, resumable over
// broken connections with a bounded replay buffer), and the JSON bodies of the control plane. It knows nothing of pools, VMs or
// certificates. docs/formats/wire.md is the specification.
package wire
