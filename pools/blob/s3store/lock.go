package s3store

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/holdfast-backup/holdfast"
)

// A Mode is how strictly the server keeps a retained object.
type Mode string

const (
	Governance Mode = "GOVERNANCE" // who has a special right can delete or shorten
	Compliance Mode = "COMPLIANCE" // nobody can, the account's owner included
)

// A Lock is an object's retention. The zero Lock means none.
type Lock struct {
	Mode  Mode
	Until time.Time
}

// covers reports whether l is at least as strict and as long as want. S3 keeps whole seconds.
func (l Lock) covers(want Lock) bool {
	return (l.Mode == want.Mode || l.Mode == Compliance) && !l.Until.Before(want.Until.Truncate(time.Second))
}

// Retention returns the retention of an object as the server has it now.
func (s *Store) Retention(ctx context.Context, name string) (Lock, error) {
	if err := check(ctx, "ask for the retention of", name); err != nil {
		return Lock{}, err
	}
	info, err := s.head(ctx, "ask for the retention of "+name, name)
	if err != nil {
		return Lock{}, err
	}
	return lockOf(info)
}

// lockOf reads the answer to a HEAD. (GET ?retention is answered differently by different servers; these headers are not.)
func lockOf(info minio.ObjectInfo) (Lock, error) {
	mode := info.Metadata.Get("X-Amz-Object-Lock-Mode")
	if mode == "" {
		return Lock{}, nil
	}
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil {
		return Lock{}, holdfast.Errorf(holdfast.Unsupported, "read the retention of "+info.Key, "%w", err)
	}
	return Lock{Mode: Mode(strings.ToUpper(mode)), Until: until}, nil
}

// Retain makes the server keep an object's current version until a date, and reads that back. It only ever extends: an object that is
// kept at least as strictly and as long already stays as it is, COMPLIANCE stays COMPLIANCE, and a later date stays the later
// one. It fails with kind Unsupported where the bucket has no Object Lock.
func (s *Store) Retain(ctx context.Context, name string, want Lock) error {
	op := "retain " + name
	if err := check(ctx, "retain", name); err != nil {
		return err
	}
	if want.Mode != Governance && want.Mode != Compliance || !want.Until.After(s.c.Clock.Now()) {
		return holdfast.Errorf(holdfast.Invalid, op, "retention %q until %s: the mode is GOVERNANCE or COMPLIANCE and the date lies ahead", want.Mode, want.Until.Format(time.RFC3339))
	}
	info, err := s.head(ctx, op, name)
	if err != nil {
		return err
	}
	have, err := lockOf(info)
	if err != nil {
		return err
	}
	if have.covers(want) {
		return nil
	}
	if have.Mode == Compliance {
		want.Mode = Compliance
	}
	if have.Until.After(want.Until) {
		want.Until = have.Until
	}
	err = s.setRetention(ctx, op, name, info.VersionID, want, false)
	if have.Mode == Governance && (errors.Is(err, holdfast.Immutable) || errors.Is(err, holdfast.Permission)) {
		// Some servers want the right to bypass GOVERNANCE also for what makes it stricter, which is all that is done here.
		err = s.setRetention(ctx, op, name, info.VersionID, want, true)
	}
	if err != nil {
		return err
	}
	have, err = s.Retention(ctx, name)
	if err != nil {
		return err
	}
	if !have.covers(want) {
		return holdfast.Errorf(holdfast.Unsupported, op, "the server accepted %s until %s and says %s until %s", want.Mode, want.Until.Format(time.RFC3339),
			have.Mode, have.Until.Format(time.RFC3339)).Advise("this server does not keep retention: do not rely on it for immutability")
	}
	return nil
}

func (s *Store) setRetention(ctx context.Context, op, name, version string, want Lock, bypass bool) error {
	mode, until := minio.RetentionMode(want.Mode), want.Until.UTC().Truncate(time.Second)
	if until.Before(want.Until) {
		until = until.Add(time.Second) // never less than was asked for
	}
	ctx, done := s.limit(ctx, 0)
	defer done()
	err := s.core.PutObjectRetention(ctx, s.c.Bucket, s.key(name), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: version, GovernanceBypass: bypass})
	if err == nil {
		return nil
	}
	var a minio.ErrorResponse
	if errors.As(err, &a) && a.StatusCode == http.StatusBadRequest && a.Code == "InvalidRequest" {
		return holdfast.Errorf(holdfast.Unsupported, op, "the bucket has no Object Lock: %w", err).Advise(adviseLock)
	}
	err = s.classify(op, err)
	if errors.Is(err, holdfast.Permission) && strings.Contains(strings.ToLower(a.Message), "object lock") {
		return holdfast.Errorf(holdfast.Immutable, op, "%w", err)
	}
	return err
}
