package appliance_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// A drawer makes pools of one kind as the appliance does: through the table of drivers, by configuration.
type drawer struct {
	t      *testing.T
	drv    pools.Driver
	config func(n int) map[string]any
	key    []byte

	mu   sync.Mutex
	made int
	at   map[pools.Pool]drawn
}

type drawn struct {
	env    pools.Env
	id     holdfast.PoolID
	config json.RawMessage
}

func (d *drawer) harness() pooltest.Harness {
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			d.mu.Lock()
			d.made++
			n := d.made
			d.mu.Unlock()
			raw, err := json.Marshal(d.config(n))
			if err != nil {
				t.Fatalf("config: %v", err)
			}
			x := drawn{id: holdfast.PoolID{ID: holdfast.NewID()}, config: raw,
				env: pools.Env{StateDir: d.t.TempDir(), Secrets: func(string) ([]byte, error) { return d.key, nil }}}
			if err := d.drv.Create(d.t.Context(), x.env, x.id, x.config); err != nil {
				t.Fatalf("create: %v (%s)", err, holdfast.HintOf(err))
			}
			return d.open(t, x)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			d.mu.Lock()
			x := d.at[p]
			d.mu.Unlock()
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return d.open(t, x)
		},
	}
}

func (d *drawer) open(t pooltest.T, x drawn) pools.Pool {
	p, err := d.drv.Open(d.t.Context(), x.env, x.id, x.config)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[p] = x
	return p
}

// TestOneHistoryRestoresEquallyFromEveryKind takes pools of every kind through the same random history, side by side: each must restore what the model has. Seeds
// are multiplied by HOLDFAST_SOAK.
func TestOneHistoryRestoresEquallyFromEveryKind(t *testing.T) {
	server, dir := s3test.Start(t), t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	ca, ak, sk := file("ca", string(server.CA.PEM)), file("ak", server.AccessKey), file("sk", server.SecretKey)
	for _, b := range []string{"one", "two", "three"} {
		err := s3store.MakeBucket(t.Context(), s3store.Config{Endpoint: server.URL, Bucket: b, CA: server.CA.PEM, AccessKey: s3store.Secret(server.AccessKey),
			SecretKey: s3store.Secret(server.SecretKey)}, false)
		if err != nil {
			t.Fatal(err)
		}
	}
	folders := func(kind string, n, many int) (paths []string) {
		for i := range many {
			paths = append(paths, filepath.Join(dir, fmt.Sprintf("%s-%d-%d", kind, n, i)))
		}
		return paths
	}
	bucket := func(kind string, n int, more map[string]any) map[string]any {
		c := map[string]any{"endpoint": server.URL, "ca_file": ca, "access_key_file": ak, "secret_key_file": sk, "prefix": fmt.Sprintf("%s-%d", kind, n)}
		for k, v := range more {
			c[k] = v
		}
		return c
	}
	key := seal.NewKey()
	sealed := func(c map[string]any) map[string]any {
		c["encryption"], c["key_file"] = "key-file", "the key"
		return c
	}
	harnesses := map[string]pooltest.Harness{}
	for name, x := range map[string]struct {
		kind   string
		config func(n int) map[string]any
	}{
		"dedup":     {"dedup", func(n int) map[string]any { return map[string]any{"path": folders("dedup", n, 1)[0]} }},
		"encrypted": {"dedup", func(n int) map[string]any { return sealed(map[string]any{"path": folders("sealed", n, 1)[0]}) }},
		"striped":   {"dedup", func(n int) map[string]any { return map[string]any{"paths": folders("striped", n, 6), "stripe": "4+2"} }},
		"standard": {"standard", func(n int) map[string]any {
			p := folders("plain", n, 2)
			return map[string]any{"paths": []map[string]any{{"path": p[0]}, {"path": p[1]}}}
		}},
		"object": {"object", func(n int) map[string]any { return bucket("plain", n, map[string]any{"bucket": "one"}) }},
		"striped object": {"object", func(n int) map[string]any {
			return bucket("striped", n, map[string]any{"buckets": []string{"one", "two", "three"}, "stripe": "2+1"})
		}},
		"encrypted object": {"object", func(n int) map[string]any { return sealed(bucket("sealed", n, map[string]any{"bucket": "two"})) }},
	} {
		drv, err := appliance.Drivers().Find(x.kind)
		if err != nil {
			t.Fatal(err)
		}
		d := &drawer{t: t, drv: drv, config: x.config, key: key.KeyFile(), at: map[pools.Pool]drawn{}}
		harnesses[name] = d.harness()
	}
	seeds := 1
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil {
		seeds = max(1, min(n, 1000))
	}
	for seed := range uint64(seeds) {
		t.Logf("seed %d", 41+seed)
		pooltest.RunHistory(t, pooltest.History{Seed: 41 + seed, Steps: 40, Pools: harnesses})
	}
}
