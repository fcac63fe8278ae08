package api

import (
	"context"

	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Keys is the part of the service that deals with pools' encryption. It is apart from Service, which a test or another assembly may
// implement without it; the routes are there if the service has it.
type Keys interface {
	// MakeKey returns the key file of that path; one that is not there is made. Without a path it is a new one in the appliance's own folder.
	MakeKey(ctx context.Context, s KeySpec) (KeyFile, error)
	PoolKeys(ctx context.Context, pool string) (PoolKeys, error)
	RotateKeys(ctx context.Context, pool string, r KeyRotation) (PoolKeys, error)
	// Sheet returns the recovery sheet. Whoever reads it can read the pool.
	Sheet(ctx context.Context, pool string, fresh bool) (Sheet, error)
	// ScrubPool checks stored bytes without any key: also of a pool that cannot be opened.
	ScrubPool(ctx context.Context, pool string) (VerifyReport, error)
}

type (
	// KeySpec names a key file.
	KeySpec struct {
		File string `json:"file,omitempty" doc:"absolute path on the appliance; empty: a new file in the appliance's folder"`
	}

	// KeyFile is a key file that is there.
	KeyFile struct {
		File  string `json:"file"`
		Made  bool   `json:"made" doc:"it was made just now"`
		Print string `json:"fingerprint" doc:"the line 'key' in the file and on the sheet"`
	}

	// PoolKeys describes what opens a pool and what encrypts it, without secrets.
	PoolKeys struct {
		Name       string `json:"name"`
		Encryption string `json:"encryption" doc:"key-file or passphrase: what the appliance opens the pool with"`
		File       string `json:"key_file" doc:"where it finds that"`
		seal.Info
	}

	// KeyRotation says what a rotation does besides beginning a new data key.
	KeyRotation struct {
		KeyFile        string `json:"new_key_file,omitempty" doc:"takes the place of every key file and passphrase there was; made if it is not there"`
		PassphraseFile string `json:"new_passphrase_file,omitempty" doc:"the same with a passphrase"`
		Reencrypt      bool   `json:"reencrypt,omitempty" doc:"collecting encrypts everything older anew"`
	}

	// Sheet is a recovery sheet.
	Sheet struct {
		Text string `json:"text" doc:"to be printed"`
	}
)

type sheetIn struct {
	Name string `path:"name" doc:"name or id"`
	New  bool   `query:"new" doc:"a new recovery key: sheets printed before are worthless then"`
}

type rotateIn struct {
	Name string `path:"name" doc:"name or id"`
	Body KeyRotation
}

func (a *API) registerKeys() {
	s, ok := a.o.Service.(Keys)
	if !ok {
		return
	}
	route(a, "POST", "/v1/keys", "Find or make a key file", 201, func(ctx context.Context, in *bodyOfType[KeySpec]) (KeyFile, error) { return s.MakeKey(ctx, in.Body) })
	route(a, "GET", "/v1/pools/{name}/keys", "Show what a pool is encrypted with", 200, func(ctx context.Context, in *byName) (PoolKeys, error) {
		return s.PoolKeys(ctx, in.Name)
	})
	route(a, "POST", "/v1/pools/{name}/keys/rotate", "Begin a new data key, and change what opens the pool", 200, func(ctx context.Context, in *rotateIn) (PoolKeys, error) {
		return s.RotateKeys(ctx, in.Name, in.Body)
	})
	route(a, "POST", "/v1/pools/{name}/keys/sheet", "The recovery sheet, to be printed", 200, func(ctx context.Context, in *sheetIn) (Sheet, error) {
		return s.Sheet(ctx, in.Name, in.New)
	})
	route(a, "POST", "/v1/pools/{name}/scrub", "Check stored bytes without any key", 200, func(ctx context.Context, in *byName) (VerifyReport, error) {
		return s.ScrubPool(ctx, in.Name)
	})
}
