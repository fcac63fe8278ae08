package pools

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A Driver is the code for one kind of pool. Drivers are listed in one table (appliance/drivers.go): no package registers itself.
type Driver struct {
	Kind string
	// Create initialises a new pool at the place that config names and leaves it closed. It refuses a place that is not empty (Exist)
	// and a config with unknown keys (Invalid). Durable when it returns.
	Create func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage) error
	// Open opens a pool made by Create. It refuses a pool that another process has open (Busy) and one of another id (Invalid).
	Open func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage) (Pool, error)
	// Identify reads the id of the pool at the place that config names. It opens nothing, takes no lock and changes nothing: another
	// process may have the pool open. NotExist if there is no pool, Unsupported if it is of another kind or a newer format.
	Identify func(ctx context.Context, env Env, config json.RawMessage) (holdfast.PoolID, error)
	// Redact returns config as it may be shown: secrets are "***". It accepts any bytes. Nil: nothing in a config is secret.
	Redact func(config json.RawMessage) json.RawMessage
	// Destroy removes a closed pool from its place, with every set that is left in it; what the driver did not write stays. It refuses a
	// pool of another id (Invalid) and one that is open (Busy). A crash in between leaves a place where Destroy can be called again.
	// Nil: the kind cannot do it.
	Destroy func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage) error
	// Scratch returns the config of a place beside the pool's own, on the same medium, where a pool for trying things can be made and
	// destroyed; name has lower-case letters, digits and dashes. Nil: the kind has no such place.
	Scratch func(config json.RawMessage, name string) (json.RawMessage, error)
	// ReplacePath returns config with one path, or other target, called by another name: to where what was at the old one was moved, or
	// where a pool that is a PathRebuilder is to rebuild it. Nil: the kind has one place only.
	ReplacePath func(config json.RawMessage, from, to string) (json.RawMessage, error)
	// AddPath makes an empty place one more path of a closed pool and returns the config that names it too. Nil: the kind's pools do not grow so.
	AddPath func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage, path string) (json.RawMessage, error)
}

// A PathRebuilder is a pool that keeps redundancy over several paths: it fills a new, empty one with what was on another, which may be
// lost, while the pool is in use. It is found by type assertion, as the optional interfaces of a Pool are.
type PathRebuilder interface {
	// RebuildPath puts the place to in the stead of from and returns when it holds everything; both are named as in the config. It may be cut off and called again.
	RebuildPath(ctx context.Context, from, to string, progress func(done, all int64)) error
}

// Env is what a driver gets from the house. Drivers read neither the environment nor the wall clock themselves.
type Env struct {
	Clock    clock.Clock
	Listener holdfast.Listener
	StateDir string // a folder on the appliance's own disk for rebuildable state; may be lost at any time
	// Secrets returns a secret that a driver's configuration names: the content of a key file or of a passphrase's file. It is asked when a
	// pool is created or opened, never kept. Nil: there are none.
	Secrets func(name string) ([]byte, error)
}

// A Registry finds drivers by kind.
type Registry []Driver

// Find returns the driver of a kind, or NotExist naming the kinds there are.
func (r Registry) Find(kind string) (Driver, error) {
	i := slices.IndexFunc(r, func(d Driver) bool { return d.Kind == kind })
	if i < 0 {
		kinds := make([]string, len(r))
		for j, d := range r {
			kinds[j] = d.Kind
		}
		return Driver{}, holdfast.Errorf(holdfast.NotExist, "find pool driver", "no pool kind %q", kind).Advise("choose one of %v", kinds)
	}
	return r[i], nil
}

// DecodeConfig reads a driver's config strictly: an unknown key is Invalid, so that a typing error never means a default.
func DecodeConfig(raw json.RawMessage, into any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return holdfast.Errorf(holdfast.Invalid, "read pool config", "%w", err)
	}
	return nil
}
