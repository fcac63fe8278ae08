package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

const (
	keysDir       = "keys" // in the data folder: key files of pools, never in a pool itself
	maxSecretFile = 64 << 10
)

var _ api.Keys = (*Service)(nil)

// A keyed pool is encrypted, or could have been.
type keyed interface {
	Keys() (seal.Info, error)
	AddKey(ctx context.Context, kind seal.Kind, secret seal.Secret, now time.Time) (seal.Info, error)
	RotateKeys(ctx context.Context, o seal.Rotation) (seal.Info, error)
	Sheet(name string, now time.Time) ([]byte, error)
}

// secretFile reads the file of a secret for a driver. It implements pools.Env.Secrets.
func secretFile(name string) ([]byte, error) {
	const op = "read secret"
	if !filepath.IsAbs(name) {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the path %q is not absolute", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fsys.Classify(op, err)
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, fsys.Classify(op, err)
	}
	if len(b) > maxSecretFile {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%s has more than %d bytes", name, maxSecretFile)
	}
	return b, nil
}

// MakeKey implements api.Keys. A file that is there is never written to.
func (s *Service) MakeKey(_ context.Context, spec api.KeySpec) (api.KeyFile, error) {
	const op = "make key file"
	out := api.KeyFile{File: spec.File}
	if out.File == "" {
		data, err := filepath.Abs(s.d.c.Data)
		if err != nil {
			return out, fsys.Classify(op, err)
		}
		if err := s.d.shelf.files.MkdirAll(keysDir); err != nil {
			return out, fsys.Classify(op, err)
		}
		out.File = filepath.Join(data, keysDir, holdfast.NewID().String()+".key")
	}
	b, err := secretFile(out.File)
	switch {
	case err == nil:
		k, err := seal.ParseKey(b)
		out.Print = k.Fingerprint().String()
		return out, err
	case !errors.Is(err, fs.ErrNotExist):
		return out, err
	}
	folder, err := fsys.NewOS(filepath.Dir(out.File))
	if err != nil {
		return out, fsys.Classify(op, err)
	}
	k := seal.NewKey()
	if err := fsys.Replace(folder, path.Base(filepath.ToSlash(out.File)), k.KeyFile()); err != nil {
		return out, fsys.Classify(op, err)
	}
	out.Made, out.Print = true, k.Fingerprint().String()
	return out, nil
}

// keyedPool returns an open pool that can be encrypted.
func (s *Service) keyedPool(ctx context.Context, name string) (catalog.Pool, keyed, error) {
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return rec, nil, err
	}
	k, ok := p.(keyed)
	if !ok {
		return rec, nil, holdfast.Errorf(holdfast.Unsupported, "look at keys", "a pool of kind %q is never encrypted", rec.Kind)
	}
	return rec, k, nil
}

// PoolKeys implements api.Keys.
func (s *Service) PoolKeys(ctx context.Context, name string) (api.PoolKeys, error) {
	rec, k, err := s.keyedPool(ctx, name)
	if err != nil {
		return api.PoolKeys{}, err
	}
	i, err := k.Keys()
	return showKeys(rec, i), err
}

func showKeys(rec catalog.Pool, i seal.Info) api.PoolKeys {
	var e dedup.Encryption
	_ = json.Unmarshal(rec.Config, &e) // the driver has read it already
	return api.PoolKeys{Name: rec.Name, Encryption: e.Encryption, File: e.KeyFile, Info: i}
}

// RotateKeys implements api.Keys. A new secret is added first, then configured, and then the old ones are taken away: whatever is cut off, the configured
// secret opens the pool.
func (s *Service) RotateKeys(ctx context.Context, name string, r api.KeyRotation) (api.PoolKeys, error) {
	rec, k, err := s.keyedPool(ctx, name)
	if err != nil {
		return api.PoolKeys{}, err
	}
	rot := seal.Rotation{Redo: r.Reencrypt, Now: s.now()}
	if r.KeyFile != "" || r.PassphraseFile != "" {
		e, secret, err := s.newSecret(ctx, r)
		if err != nil {
			return api.PoolKeys{}, err
		}
		rot.Kind, rot.Secret = seal.KeyFile, secret
		if e.Encryption == dedup.EncryptPassphrase {
			rot.Kind = seal.Passphrase
		}
		if _, err := k.AddKey(ctx, rot.Kind, secret, s.now()); err != nil {
			return api.PoolKeys{}, err
		}
		if rec, err = s.configureKey(ctx, rec, e); err != nil {
			return api.PoolKeys{}, err
		}
	}
	i, err := k.RotateKeys(ctx, rot)
	return showKeys(rec, i), err
}

// newSecret reads, or makes, the secret that a rotation asks for.
func (s *Service) newSecret(ctx context.Context, r api.KeyRotation) (dedup.Encryption, seal.Secret, error) {
	e := dedup.Encryption{Encryption: dedup.EncryptPassphrase, KeyFile: r.PassphraseFile}
	kind := seal.Passphrase
	if r.KeyFile != "" {
		if r.PassphraseFile != "" {
			return e, seal.Secret{}, holdfast.Errorf(holdfast.Invalid, "rotate key", "both a key file and a passphrase").Advise("choose one; the recovery sheet opens the pool besides")
		}
		f, err := s.MakeKey(ctx, api.KeySpec{File: r.KeyFile})
		if err != nil {
			return e, seal.Secret{}, err
		}
		e, kind = dedup.Encryption{Encryption: dedup.EncryptKeyFile, KeyFile: f.File}, seal.KeyFile
	}
	b, err := secretFile(e.KeyFile)
	if err != nil {
		return e, seal.Secret{}, err
	}
	secret, err := seal.Read(kind, b)
	return e, secret, err
}

// configureKey changes with what the appliance opens a pool from now on.
func (s *Service) configureKey(ctx context.Context, rec catalog.Pool, e dedup.Encryption) (catalog.Pool, error) {
	config := map[string]any{}
	err := json.Unmarshal(rec.Config, &config)
	if err == nil {
		config["encryption"], config["key_file"] = e.Encryption, e.KeyFile
		rec.Config, err = json.Marshal(config)
	}
	if err != nil {
		return rec, holdfast.Errorf(holdfast.Internal, "change pool config", "%w", err)
	}
	if err := s.d.shelf.note(rec); err != nil {
		return rec, err
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutPool(rec) }); err != nil {
		return rec, err
	}
	s.d.shelf.reconfigure(rec)
	return rec, nil
}

// reconfigure makes a pool be opened with another config the next time.
func (s *shelf) reconfigure(rec catalog.Pool) {
	s.mu.Lock()
	sl := s.slots[rec.ID]
	s.mu.Unlock()
	if sl == nil {
		return
	}
	sl.turn.Lock()
	sl.rec = rec
	sl.turn.Unlock()
}

// Sheet implements api.Keys.
func (s *Service) Sheet(ctx context.Context, name string, fresh bool) (api.Sheet, error) {
	rec, k, err := s.keyedPool(ctx, name)
	if err != nil {
		return api.Sheet{}, err
	}
	if fresh {
		if _, err := k.RotateKeys(ctx, seal.Rotation{Recovery: true, Now: s.now()}); err != nil {
			return api.Sheet{}, err
		}
	}
	text, err := k.Sheet(printable(rec.Name), s.now())
	if err != nil {
		return api.Sheet{}, err
	}
	s.d.events.Emit(holdfast.Event{Type: "recovery-sheet-shown", Severity: holdfast.Warning, Text: "the recovery sheet of pool " + rec.Name + " was shown: it opens the pool",
		Fields: map[string]string{"pool": rec.Name}})
	return api.Sheet{Text: string(text)}, nil
}

// printable keeps control characters off paper and terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// ScrubPool implements api.Keys.
func (s *Service) ScrubPool(ctx context.Context, name string) (pools.VerifyReport, error) {
	var rec catalog.Pool
	err := s.d.cat.View(func(tx *catalog.Tx) (err error) {
		rec, err = tx.FindPool(name)
		return advise(err, "'holdfast pool list' shows the pools there are")
	})
	if err != nil {
		return pools.VerifyReport{}, err
	}
	if rec.Kind != dedup.Driver().Kind {
		return pools.VerifyReport{}, holdfast.Errorf(holdfast.Unsupported, "scrub pool", "a pool of kind %q is checked by 'holdfast pool verify'", rec.Kind)
	}
	return dedup.ScrubFolder(ctx, rec.Config, nil)
}
