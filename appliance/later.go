package appliance

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

const (
	laterPrefix = "restore.later." // settings: one restore that has not begun each
	maxLater    = 1000
	laterLook   = time.Minute // the longest sleep: the clock of the machine may be set
	laterRetry  = 10 * time.Second
	recentRuns  = 1000
)

// later begins restores at their time. The record of one goes when its run is recorded, and a run names the record it came from: whatever is killed
// in between, a restore begins once.
type later struct {
	s    *Service
	wake chan struct{}
}

func newLater(s *Service) *later { return &later{s: s, wake: make(chan struct{}, 1)} }

// run begins what is due until the daemon stops.
func (l *later) run() {
	d := l.s.d
	for {
		sleep := laterLook
		rs, err := l.s.RestoresLater(d.ctx)
		if err != nil {
			d.c.Log.Error("reading the restores that wait for their time", "error", err)
		}
		for _, r := range rs {
			left := r.At.Sub(l.s.now())
			if left > 0 {
				sleep = min(sleep, left)
				continue
			}
			if err := l.begin(r); err != nil {
				d.c.Log.Error("a restore could not be begun at its time; it is tried again", "restore", r.ID, "error", err)
				sleep = min(sleep, laterRetry)
			}
		}
		tick, stop := d.c.Clock.After(sleep)
		select {
		case <-tick:
		case <-l.wake:
		case <-d.ctx.Done():
			stop()
			return
		}
		stop()
	}
}

// begin begins one, and forgets it. What preflight refuses becomes a run that failed. A host that is offline for a moment, as after a start of the
// appliance, is waited for as long as a task waits for its agent.
func (l *later) begin(r api.RestoreAt) error {
	s, ctx := l.s, l.s.d.ctx
	vs, err := s.d.jobs.List(recentRuns)
	if err != nil {
		return err
	}
	begun := slices.ContainsFunc(vs, func(v job.View) bool { return v.Spec.Later == r.ID })
	if !begun {
		_, err := s.restore(ctx, r.Spec, r.ID)
		if ctx.Err() != nil {
			return nil // the daemon stops: the restore is still to be begun
		}
		late := s.now().Sub(r.At) > job.DefaultReconnect && s.now().Sub(s.started) > job.DefaultReconnect
		if holdfast.KindOf(err) == holdfast.Offline && !late {
			return err
		}
		if err != nil {
			if _, err := s.failedRestore(ctx, job.Spec{Later: r.ID}, laterName(&r.Spec), err); err != nil && holdfast.KindOf(err) == holdfast.Busy {
				return err
			}
		}
	}
	return s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteSetting(laterPrefix + r.ID) })
}

func laterName(spec *api.RestoreSpec) string {
	names := append(slices.Clone(spec.VMs), spec.Sets...)
	if spec.Set != "" {
		names = append(names, spec.Set)
	}
	return strings.Join(names[:min(len(names), 3)], ", ")
}

// RestoreLater implements api.Service. What contradicts itself is refused at once; the rest is judged at the time.
func (s *Service) RestoreLater(ctx context.Context, r api.RestoreAt) (api.RestoreAt, error) {
	const op = "restore later"
	if r.At.IsZero() {
		return r, holdfast.Errorf(holdfast.Invalid, op, "no time is given")
	}
	if _, err := requestOf(&r.Spec); err != nil {
		return r, err
	}
	if _, err := restoreTuning(&r.Spec); err != nil {
		return r, err
	}
	host, err := s.hostRecord(r.Spec.Host)
	if err != nil {
		return r, err
	}
	if _, err := s.sources(ctx, &r.Spec, host.ID); err != nil {
		return r, err
	}
	r.ID, r.At, r.Created = holdfast.NewID().String(), r.At.UTC(), s.now()
	raw, err := json.Marshal(r)
	if err != nil {
		return r, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	rs, err := s.RestoresLater(ctx)
	if err != nil {
		return r, err
	}
	if len(rs) >= maxLater {
		return r, holdfast.Errorf(holdfast.NoSpace, op, "%d restores wait for their time already", len(rs)).Advise("cancel some with 'holdfast restore cancel'")
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(laterPrefix+r.ID, raw) }); err != nil {
		return r, err
	}
	select {
	case s.d.later.wake <- struct{}{}:
	default:
	}
	return r, nil
}

// RestoresLater implements api.Service.
func (s *Service) RestoresLater(context.Context) ([]api.RestoreAt, error) {
	var out []api.RestoreAt
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		all, err := tx.Settings()
		for name, raw := range all {
			if !strings.HasPrefix(name, laterPrefix) {
				continue
			}
			var r api.RestoreAt
			if err := json.Unmarshal(raw, &r); err != nil {
				return holdfast.Errorf(holdfast.Corrupt, "read restore", "%s: %w", name, err)
			}
			out = append(out, r)
		}
		return err
	})
	slices.SortFunc(out, func(a, b api.RestoreAt) int {
		if n := a.At.Compare(b.At); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, err
}

// CancelRestoreLater implements api.Service.
func (s *Service) CancelRestoreLater(ctx context.Context, id string) (api.RestoreAt, error) {
	rs, err := s.RestoresLater(ctx)
	if err != nil {
		return api.RestoreAt{}, err
	}
	for _, r := range rs {
		if r.ID == id {
			return r, s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteSetting(laterPrefix + id) })
		}
	}
	return api.RestoreAt{}, holdfast.Errorf(holdfast.NotExist, "cancel restore", "no restore %s waits for its time", id).
		Advise("'holdfast restore list' shows those that do; one that has begun is a run: 'holdfast run list'")
}

// folderMap finds folders by their names.
func folderMap(fs []wire.Folder) map[string]wire.Folder {
	out := make(map[string]wire.Folder, len(fs))
	for _, f := range fs {
		out[f.Dir] = f
	}
	return out
}

var _ api.Restorer = (*Service)(nil)
