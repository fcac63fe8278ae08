package memory

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// Config is the driver's configuration.
type Config struct {
	Place    string `json:"place"`              // the name of the medium among those of one Driver value
	Chunking string `json:"chunking,omitempty"` // as holdfast.ParseChunking reads it; empty: the default
}

// Driver returns a driver with media of its own: what its Create makes, its Open finds for as long as the value lives.
func Driver() pools.Driver {
	var mu sync.Mutex
	media := map[string]*Medium{}
	return pools.Driver{
		Kind: Kind,
		Create: func(ctx context.Context, _ pools.Env, id holdfast.PoolID, config json.RawMessage) error {
			c, chunking, err := readConfig(config)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if media[c.Place] != nil {
				return holdfast.Errorf(holdfast.Exist, "create memory pool", "there is a pool at %q", c.Place)
			}
			m, err := NewMedium(id, chunking)
			if err != nil {
				return err
			}
			media[c.Place] = m
			return ctx.Err()
		},
		Open: func(ctx context.Context, _ pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			c, _, err := readConfig(config)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			m := media[c.Place]
			switch {
			case m == nil:
				return nil, holdfast.Errorf(holdfast.NotExist, "open memory pool", "there is no pool at %q", c.Place).
					Advise("memory pools do not outlive the process that made them")
			case m.id != id:
				return nil, holdfast.Errorf(holdfast.Invalid, "open memory pool", "the pool at %q is %s, not %s", c.Place, m.id, id)
			}
			p, err := m.Open()
			if err != nil {
				return nil, err // not p: a nil *Pool is not a nil pools.Pool
			}
			return p, nil
		},
	}
}

// readConfig decodes and checks the configuration.
func readConfig(raw json.RawMessage) (Config, holdfast.Chunking, error) {
	var c Config
	if err := pools.DecodeConfig(raw, &c); err != nil {
		return c, holdfast.Chunking{}, err
	}
	if c.Place == "" {
		return c, holdfast.Chunking{}, holdfast.Errorf(holdfast.Invalid, "read pool config", "no place")
	}
	chunking, err := holdfast.ParseChunking(c.Chunking)
	return c, chunking, err
}
