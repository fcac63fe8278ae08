package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/catalog"
)

const (
	// defaultStale is how old a VM's newest point may be where nobody said anything.
	defaultStale = "72h"
	// sweepEvery is how often what makes no event by itself is looked at.
	sweepEvery = time.Minute
	// sweepGrace is how long after the start hosts and pools may take to come back.
	sweepGrace = 2 * time.Minute
	// acceptRetry is how long events wait where the catalog cannot take what they bring.
	acceptRetry = 10 * time.Second
)

// A herald takes the recorded events to notify.Notifier, as alarms where they are ones, and looks every minute for what makes no event.
// It keeps the targets and settings in the catalog.
type herald struct {
	d     *Daemon
	n     *notify.Notifier
	seal  *sealer
	kick  chan struct{}
	start time.Time
	first map[holdfast.VMID]time.Time // when VMs without a point were first seen to be protected; only watch uses it

	mu       sync.Mutex // guards targets and settings, and is held while they are changed in the catalog
	targets  []notify.Target
	settings api.NotifySettings
	stale    time.Duration
}

// openHerald makes the herald; run begins its work.
func (d *Daemon) openHerald() error {
	h := &herald{d: d, kick: make(chan struct{}, 1), first: map[holdfast.VMID]time.Time{}, start: d.c.Clock.Now()}
	var err error
	if h.seal, err = newSealer(d.files); err != nil {
		return err
	}
	all, err := allSettings(d.cat)
	if err != nil {
		return err
	}
	h.settings.Stale = defaultStale
	if raw, ok := all[heraldSetting]; ok {
		if err := json.Unmarshal(raw, &h.settings); err != nil {
			return holdfast.Errorf(holdfast.Corrupt, "read notification settings", "%w", err)
		}
	}
	for name, raw := range all {
		name, ok := strings.CutPrefix(name, heraldTarget)
		if !ok {
			continue
		}
		t, lost, err := h.seal.open(name, raw)
		if err != nil {
			return err
		}
		if lost {
			d.c.Log.Error("the secrets of a notification target cannot be read with the key in "+sealName+": enter them again", "target", name)
		}
		if err := t.Check(); err != nil { // a newer program is stricter; the record stays
			d.c.Log.Error("a notification target cannot work as it is and is left out: add it anew", "target", name, "error", err)
			continue
		}
		h.targets = append(h.targets, t)
	}
	h.sort()
	if h.n, err = notify.New(notify.Options{Store: heraldStore{d.cat}, Clock: d.c.Clock, Listener: d.events.Emit}, h.targets); err != nil {
		return err
	}
	if h.n.Cursor() == 0 {
		err := d.cat.View(func(tx *catalog.Tx) error {
			last, err := tx.LastEvent()
			h.n.Skip(last)
			return err
		})
		if err != nil {
			return err
		}
	}
	d.herald = h
	return h.configure(h.settings)
}

// run works until the daemon stops.
func (h *herald) run() {
	d := h.d
	d.wg.Go(func() { h.n.Run(d.ctx) })
	d.wg.Go(h.feed)
	d.wg.Go(h.watch)
}

func (h *herald) sort() {
	slices.SortFunc(h.targets, func(a, b notify.Target) int { return strings.Compare(a.Name, b.Name) })
}

// configure makes the notifier work by settings. Invalid changes nothing.
func (h *herald) configure(s api.NotifySettings) error {
	zone, remind, stale, err := readNotify(s)
	if err != nil {
		return err
	}
	name := s.Site
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			name = ""
		}
	}
	h.stale = stale
	h.n.Configure(name, zone, remind)
	return nil
}

// readNotify reads the parts of settings that are more than text.
func readNotify(s api.NotifySettings) (zone *time.Location, remind, stale time.Duration, err error) {
	const op = "set notifications"
	zone = time.Local
	if s.Zone != "" {
		if zone, err = time.LoadLocation(s.Zone); err != nil {
			return zone, 0, 0, holdfast.Errorf(holdfast.Invalid, op, "%q is not a time zone", s.Zone).Advise("write it like Europe/Berlin, or UTC")
		}
	}
	if remind, err = spanOf(op, "remind", s.Remind); err != nil {
		return zone, 0, 0, err
	}
	stale, err = spanOf(op, "stale", s.Stale)
	return zone, remind, stale, err
}

func spanOf(op, name, text string) (time.Duration, error) {
	if text == "" || text == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "%s: %q is not a length of time", name, text).Advise("write it like 36h or 90m; 0 means never")
	}
	return d, nil
}

// feed takes recorded events to the notifier, one after the other. What cannot be taken now is taken later.
func (h *herald) feed() {
	ctx := h.d.ctx
	for ctx.Err() == nil {
		for e, err := range h.d.events.follow(ctx, h.n.Cursor()) {
			if err == nil {
				err = h.take(e)
			}
			if err != nil {
				h.d.c.Log.Error("events cannot be told now", "error", err)
				break
			}
		}
		late, stop := h.d.c.Clock.After(acceptRetry)
		select {
		case <-late:
		case <-ctx.Done():
		}
		stop()
	}
}

// take hands an event's alarms over. The numbered one is the last, so that a crash before it brings all of them again; alarms do not mind.
func (h *herald) take(e api.Event) error {
	if err := h.note(e.Event); err != nil {
		return err
	}
	list := h.alarms(e.Event)
	for _, x := range list[:len(list)-1] {
		if err := h.n.Accept(0, x); err != nil {
			return err
		}
	}
	return h.n.Accept(e.Seq, list[len(list)-1])
}

// watch looks for what makes no event by itself.
func (h *herald) watch() {
	for {
		late, stop := h.d.c.Clock.After(sweepEvery)
		select {
		case <-late:
		case <-h.kick:
		case <-h.d.ctx.Done():
		}
		stop()
		if h.d.ctx.Err() != nil {
			return
		}
		if err := h.sweep(); err != nil && h.d.ctx.Err() == nil {
			h.d.c.Log.Error("what should raise alarms could not be looked at", "error", err)
		}
	}
}

// look asks for a sweep soon.
func (h *herald) look() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// NotifyStatus implements api.Notifications.
func (s *Service) NotifyStatus(context.Context) (api.NotifyStatus, error) {
	h := s.d.herald
	h.mu.Lock()
	out := api.NotifyStatus{Settings: h.settings, Targets: []api.NotifyDelivery{}, Alarms: h.n.Alarms()}
	targets := slices.Clone(h.targets)
	h.mu.Unlock()
	if out.Alarms == nil {
		out.Alarms = []notify.Alarm{}
	}
	for _, st := range h.n.Status() {
		x := api.NotifyDelivery{Status: st}
		for _, t := range targets {
			if t.Name == st.Name {
				x.Kind, x.Disabled = t.Kind(), t.Disabled
			}
		}
		out.Targets = append(out.Targets, x)
	}
	return out, nil
}

// SetNotify implements api.Notifications.
func (s *Service) SetNotify(ctx context.Context, c api.NotifyChange) (api.NotifySettings, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	was, now := h.settings, h.settings
	for _, x := range []struct{ to, from *string }{{&now.Site, c.Site}, {&now.Zone, c.Zone}, {&now.Remind, c.Remind}, {&now.Stale, c.Stale}} {
		if x.from != nil {
			*x.to = *x.from
		}
	}
	if err := h.configure(now); err != nil {
		return was, err
	}
	raw, err := json.Marshal(now)
	if err == nil {
		err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(heraldSetting, raw) })
	}
	if err != nil {
		return was, errors.Join(err, h.configure(was))
	}
	h.settings = now
	h.look()
	return now, nil
}

// NotifyTargets implements api.Notifications.
func (s *Service) NotifyTargets(context.Context) ([]notify.Target, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.targets), nil
}

// NotifyTarget implements api.Notifications.
func (s *Service) NotifyTarget(_ context.Context, name string) (notify.Target, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(name)
	if err != nil {
		return notify.Target{}, err
	}
	return h.targets[i], nil
}

// find returns the place of a target. The caller has the lock.
func (h *herald) find(name string) (int, error) {
	i := slices.IndexFunc(h.targets, func(t notify.Target) bool { return t.Name == name })
	if i < 0 {
		return i, holdfast.Errorf(holdfast.NotExist, "find notification target", "there is no target %q", name).Advise("'holdfast notify target list' shows the targets there are")
	}
	return i, nil
}

// AddNotifyTarget implements api.Notifications.
func (s *Service) AddNotifyTarget(ctx context.Context, t notify.Target) (notify.Target, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.find(t.Name); err == nil {
		return t, holdfast.Errorf(holdfast.Exist, "add notification target", "there is a target %q already", t.Name).
			Advise("change it with 'holdfast notify target set %s', or choose another name", t.Name)
	}
	return t, h.change(ctx, append(slices.Clone(h.targets), t), t, "")
}

// SetNotifyTarget implements api.Notifications.
func (s *Service) SetNotifyTarget(ctx context.Context, name string, t notify.Target) (notify.Target, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(name)
	if err != nil {
		return t, err
	}
	t.Name = name
	t.KeepSecrets(h.targets[i])
	next := slices.Clone(h.targets)
	next[i] = t
	return t, h.change(ctx, next, t, "")
}

// DeleteNotifyTarget implements api.Notifications.
func (s *Service) DeleteNotifyTarget(ctx context.Context, name string) (notify.Target, error) {
	h := s.d.herald
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(name)
	if err != nil {
		return notify.Target{}, err
	}
	t := h.targets[i]
	return t, h.change(ctx, slices.Delete(slices.Clone(h.targets), i, i+1), notify.Target{}, name)
}

// change keeps a target, or removes the one that is gone, and makes the notifier work by next. The caller has the lock.
func (h *herald) change(ctx context.Context, next []notify.Target, t notify.Target, gone string) error {
	if gone == "" {
		if err := t.Check(); err != nil {
			return advise(err, "'holdfast notify target add --help' shows what each kind needs")
		}
		for _, name := range t.Masked() {
			return holdfast.Errorf(holdfast.Invalid, "keep notification target", "%s: *** is not its %s", t.Name, name).
				Advise("give the %s, or the path of a file that holds it as %s_file", name, name)
		}
	}
	if err := h.n.SetTargets(next); err != nil {
		return err
	}
	err := h.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if gone != "" {
			return tx.DeleteSetting(heraldTarget + gone)
		}
		raw, err := h.seal.keep(t)
		if err != nil {
			return err
		}
		return tx.PutSetting(heraldTarget+t.Name, raw)
	})
	if err != nil {
		return errors.Join(err, h.n.SetTargets(h.targets))
	}
	h.targets = next
	h.sort()
	h.look()
	return nil
}

// TestNotifyTarget implements api.Notifications.
func (s *Service) TestNotifyTarget(ctx context.Context, name string) (api.NotifyTested, error) {
	t, err := s.NotifyTarget(ctx, name)
	if err != nil {
		return api.NotifyTested{}, err
	}
	if err := s.d.herald.n.Test(ctx, t); err != nil {
		return api.NotifyTested{}, &holdfast.Error{Op: "test target " + name, Kind: holdfast.KindOf(err), Err: err,
			Hint: "nothing waits in the queue because of this; 'holdfast notify target show " + name + "' shows how it is set"}
	}
	return api.NotifyTested{Name: name, Sent: s.now()}, nil
}
