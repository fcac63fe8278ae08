package appliance

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
)

// Names of the herald's settings in the catalog.
const (
	heraldState   = "notify:"        // and a key of notify.Store
	heraldTarget  = "notify-target:" // and a target's name
	heraldSetting = "notify-settings"
)

// heraldStore is a notify.Store in the catalog.
type heraldStore struct{ cat *catalog.Catalog }

// storeName is the setting that keeps a key. Keys that a setting's name cannot have go by their hash: what is kept names its key itself.
func storeName(key string) string {
	plain := len(heraldState)+len(key) <= catalog.MaxName
	for _, r := range key {
		plain = plain && r >= ' ' && r < 0x7f
	}
	if !plain {
		kind, _, _ := strings.Cut(key, "/")
		h := sha256.Sum256([]byte(key))
		key = kind + "/#" + hex.EncodeToString(h[:])
	}
	return heraldState + key
}

// Load implements notify.Store.
func (s heraldStore) Load(yield func(key string, value []byte) error) error {
	all, err := allSettings(s.cat)
	if err != nil {
		return err
	}
	for name, value := range all {
		if key, ok := strings.CutPrefix(name, heraldState); ok {
			if err := yield(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func allSettings(c *catalog.Catalog) (all map[string]json.RawMessage, err error) {
	err = c.View(func(tx *catalog.Tx) error {
		all, err = tx.Settings()
		return err
	})
	return all, err
}

// Apply implements notify.Store.
func (s heraldStore) Apply(changes []notify.Change) error {
	return s.cat.Update(context.Background(), func(tx *catalog.Tx) error {
		for _, c := range changes {
			var err error
			if c.Value == nil {
				err = tx.DeleteSetting(storeName(c.Key))
			} else {
				err = tx.PutSetting(storeName(c.Key), c.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// sealName is the file, in the data folder, with the key that the secrets of notification targets are sealed with. It is not in the
// catalog, so that a copy of the catalog gives none of them away.
const sealName = "notify.key"

// A sealer keeps secrets.
type sealer struct{ aead cipher.AEAD }

// newSealer reads the key and makes one where there is none, or where the file does not hold one any more: that passwords have to be
// entered again must not keep an appliance from starting.
func newSealer(f fsys.FS) (*sealer, error) {
	const op = "open notification secrets"
	raw, err := fsys.ReadFile(f, sealName, 1<<10)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != 32 {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		if err := fsys.Replace(f, sealName, []byte(hex.EncodeToString(key)+"\n")); err != nil {
			return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
		}
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return &sealer{aead}, nil
}

// keptTarget is the record of a target: as it may be shown, and sealed with its secrets.
type keptTarget struct {
	Shown  json.RawMessage `json:"shown"`
	Sealed []byte          `json:"sealed"`
}

func (s *sealer) keep(t notify.Target) (json.RawMessage, error) {
	shown, err := json.Marshal(t)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "keep notification target", "%w", err)
	}
	plain, err := t.Seal()
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "keep notification target", "%w", err)
	}
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return json.Marshal(keptTarget{shown, s.aead.Seal(nonce, nonce, plain, []byte(t.Name))})
}

// open reads a record. Where the key is another than it was, the target comes back with *** for its secrets, and lost is true.
func (s *sealer) open(name string, raw json.RawMessage) (t notify.Target, lost bool, err error) {
	var k keptTarget
	if err := json.Unmarshal(raw, &k); err != nil {
		return t, false, holdfast.Errorf(holdfast.Corrupt, "read notification target", "%s: %w", name, err)
	}
	if n := s.aead.NonceSize(); len(k.Sealed) > n {
		if plain, err := s.aead.Open(nil, k.Sealed[:n], k.Sealed[n:], []byte(name)); err == nil {
			t, err := notify.Unseal(plain)
			return t, false, err
		}
	}
	t, err = notify.Unseal(k.Shown)
	return t, len(t.Inline()) > 0, err
}
