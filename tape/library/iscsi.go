package library

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/iscsi"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

const attentionLimit = 8

// do executes a command, over the unit attentions that a new login meets.
func do(ctx context.Context, t scsi.Transport, c scsi.Command) ([]byte, error) {
	for i := 0; ; i++ {
		b, err := scsi.Do(ctx, t, c)
		var e *scsi.Error
		if !errors.As(err, &e) || e.Sense.Key != scsi.UnitAttention || i == attentionLimit {
			return b, err
		}
	}
}

// Look asks a device what it is.
func Look(ctx context.Context, t scsi.Transport, place string) (Unit, error) {
	u := Unit{Place: place, Transport: t}
	b, err := do(ctx, t, scsi.Command{CDB: scsi.Inquiry(scsi.InquiryLen), In: make([]byte, scsi.InquiryLen)})
	if err != nil {
		return u, err
	}
	if u.Identity, err = scsi.ParseInquiry(b); err != nil {
		return u, err
	}
	b, err = do(ctx, t, scsi.Command{CDB: scsi.InquiryVPD(scsi.PageSerial, 255), In: make([]byte, 255)})
	var e *scsi.Error
	switch {
	case err == nil:
		u.Serial, _ = scsi.ParseSerial(b) // a unit without one is known by its place
	case !errors.As(err, &e):
		return u, err
	}
	return u, nil
}

type closer func() error

func (c closer) Close() error { return c() }

// secret reads the first line of a secret's file.
func secret(o Options, file string) (string, error) {
	const op = "read secret of tape library"
	if file == "" {
		return "", nil
	}
	if o.Secrets == nil {
		return "", holdfast.Errorf(holdfast.Unsupported, op, "secrets cannot be read here")
	}
	b, err := o.Secrets(file)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", holdfast.Errorf(holdfast.Invalid, op, "the first line of %s is empty", file)
	}
	return line, nil
}

// openISCSI logs in to a target and asks each of its units what it is.
func openISCSI(ctx context.Context, a Address, o Options) (Units, error) {
	io := iscsi.Options{Portal: a.Portal, Target: a.Target, Initiator: a.Initiator, User: a.User, HeaderDigest: a.Digests, DataDigest: a.Digests, Clock: o.Clock}
	if io.Initiator == "" {
		io.Initiator = o.Initiator
	}
	var err error
	if io.Secret, err = secret(o, a.SecretFile); err != nil {
		return Units{}, err
	}
	if io.TargetSecret, err = secret(o, a.TargetSecretFile); err != nil {
		return Units{}, err
	}
	s, err := iscsi.Dial(ctx, io)
	if err != nil {
		return Units{}, err
	}
	u := Units{Closer: s}
	if u.List, err = lookAtLUNs(ctx, s); err != nil {
		return Units{}, errors.Join(err, s.Close())
	}
	return u, nil
}

func lookAtLUNs(ctx context.Context, s *iscsi.Session) ([]Unit, error) {
	n := 8 + 8*scsi.MaxLUNs
	b, err := do(ctx, s.LUN(0), scsi.Command{CDB: scsi.ReportLUNs(n), In: make([]byte, n)})
	if err != nil {
		return nil, err
	}
	luns, err := scsi.ParseLUNs(b)
	if err != nil {
		return nil, err
	}
	var out []Unit
	for _, raw := range luns {
		lun, ok := scsi.FlatLUN(raw)
		if !ok {
			continue // a unit that cannot be addressed simply is none of ours
		}
		u, err := Look(ctx, s.LUN(lun), fmt.Sprintf("lun %d", lun))
		if err != nil {
			return nil, err
		}
		if u.Type != scsi.TypeNone {
			out = append(out, u)
		}
	}
	return out, nil
}
