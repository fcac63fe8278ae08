package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/appliance/site"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// A sitePool is a pool in a site file.
type sitePool struct {
	Kind        string         `json:"kind"`
	Config      map[string]any `json:"config,omitempty"`
	Quota       string         `json:"quota,omitempty"` // like 2TiB
	Maintenance bool           `json:"maintenance,omitempty"`
}

type poolPart struct{ s *Service }

func (poolPart) Section() string { return "pools" }
func (poolPart) Remark() string {
	return "config is the kind's own; secrets in it are the paths of files. A pool that is taken out of the file is forgotten, and its data stays."
}

func (p poolPart) Current(ctx context.Context) (map[string]site.Item, error) {
	recs, err := p.s.poolRecords()
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{}
	for _, rec := range recs {
		o, err := p.s.poolOptions(rec.ID)
		if err != nil {
			return nil, err
		}
		x := sitePool{Kind: rec.Kind, Maintenance: o.Maintenance, Quota: quotaText(o.Quota)}
		if err := json.Unmarshal(p.s.redacted(rec), &x.Config); err != nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, "export pool", "%s: %w", rec.Name, err)
		}
		if out[rec.Name], err = site.Encode(x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// quotaText writes a quota without loss.
func quotaText(n int64) string {
	switch {
	case n == 0:
		return ""
	case n%(1<<40) == 0:
		return fmt.Sprintf("%dTiB", n>>40)
	case n%(1<<30) == 0:
		return fmt.Sprintf("%dGiB", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	}
	return fmt.Sprint(n)
}

func (p poolPart) read(name string, it site.Item) (x sitePool, quota int64, err error) {
	if n, ok := it["quota"].(float64); ok {
		it["quota"] = fmt.Sprintf("%.0f", n)
	}
	if err := site.Decode(it, &x); err != nil {
		return x, 0, err
	}
	if err := checkPoolName(name); err != nil {
		return x, 0, err
	}
	if _, err := p.s.d.c.Drivers.Find(x.Kind); err != nil {
		return x, 0, err
	}
	if x.Quota != "" {
		if quota, err = cli.ParseSize(x.Quota); err != nil {
			return x, 0, err
		}
	}
	return x, quota, checkPaths(x.Config)
}

func (p poolPart) Normal(name string, it site.Item) (site.Item, error) {
	x, quota, err := p.read(name, it)
	if err != nil {
		return nil, err
	}
	x.Quota = quotaText(quota)
	if x.Config, err = p.shown(x); err != nil {
		return nil, err
	}
	return site.Encode(x)
}

// masked is what a secret shows as.
const masked = `"***"`

// shown brings a config into the form in which the appliance shows it. One with secrets in it is refused.
func (p poolPart) shown(x sitePool) (map[string]any, error) {
	raw, err := json.Marshal(x.Config)
	if err != nil {
		return nil, err
	}
	red := p.s.redacted(catalog.Pool{Kind: x.Kind, Config: raw})
	if strings.Count(string(red), masked) > strings.Count(string(raw), masked) {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a file that people share is no place for secrets").Advise("put them into files on the appliance and name those, as 'holdfast pool create --help' says")
	}
	var out map[string]any
	if err := json.Unmarshal(red, &out); err != nil || out == nil && x.Config != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "config is not one of a pool of kind %q", x.Kind)
	}
	for k, v := range x.Config { // what a driver leaves out of what it shows, it does not know
		if _, ok := out[k]; !ok && v != nil && v != "" && v != false && v != 0.0 {
			return nil, holdfast.Errorf(holdfast.Invalid, "", "a pool of kind %q has no %q in its config", x.Kind, k)
		}
	}
	return out, nil
}

func (p poolPart) Refuse(name string, was, now site.Item) error {
	a, _, err := p.read(name, was)
	if err != nil {
		return err
	}
	b, _, err := p.read(name, now)
	if err != nil {
		return err
	}
	if a.Kind != b.Kind || !site.Same(a.Config, b.Config) {
		return holdfast.Errorf(holdfast.Unsupported, "", "kind and config of a pool that is there are not changed by a file").
			Advise("'holdfast pool set %s' follows it to another path or adds one; then export again", name)
	}
	return nil
}

func (p poolPart) Loss(_ context.Context, name string, _, now site.Item) (string, error) {
	if now != nil {
		return "", nil
	}
	rec, err := p.s.poolRecord(name)
	if err != nil {
		return "", err
	}
	sets, err := p.s.setsIn(rec.ID)
	return fmt.Sprintf("the appliance forgets the pool and its %d backup sets; its data stays where it is and can be imported again", len(sets)), err
}

func (p poolPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	x, _, err := p.read(name, it)
	if err != nil {
		return site.Made{}, err
	}
	if raw, err := json.Marshal(x.Config); err != nil || strings.Contains(string(raw), masked) {
		return site.Made{}, holdfast.Errorf(holdfast.Invalid, "", "*** stands for a secret that this appliance does not have").Advise("name a file on the appliance that holds it")
	}
	if _, err := p.s.CreatePool(ctx, api.PoolSpec{Name: name, Kind: x.Kind, Config: x.Config}); err != nil {
		return site.Made{}, err
	}
	return site.Made{}, p.options(ctx, name, it)
}

// options sets what the appliance, not the driver, knows of a pool.
func (p poolPart) options(ctx context.Context, name string, it site.Item) error {
	x, quota, err := p.read(name, it)
	if err != nil {
		return err
	}
	rec, err := p.s.poolRecord(name)
	if err != nil {
		return err
	}
	o, err := p.s.poolOptions(rec.ID)
	if err != nil || o.Quota == quota && o.Maintenance == x.Maintenance {
		return err
	}
	_, err = p.s.SetPool(ctx, name, api.PoolChange{Quota: &quota, Maintenance: &x.Maintenance})
	return err
}

func (p poolPart) Change(ctx context.Context, name string, _, now site.Item) error {
	return p.options(ctx, name, now)
}

func (p poolPart) Delete(ctx context.Context, name string) error {
	_, err := p.s.DeletePool(ctx, name, true)
	return err
}

// notifyPart has one item, "settings".
type notifyPart struct{ s *Service }

const settingsItem = "settings"

func (notifyPart) Section() string { return "notifications" }
func (notifyPart) Remark() string  { return "What holds for all notification targets." }

func (p notifyPart) Current(ctx context.Context) (map[string]site.Item, error) {
	st, err := p.s.NotifyStatus(ctx)
	if err != nil {
		return nil, err
	}
	it, err := site.Encode(st.Settings)
	return map[string]site.Item{settingsItem: it}, err
}

func (p notifyPart) Normal(name string, it site.Item) (site.Item, error) {
	if name != settingsItem {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "the one entry there is: %s", settingsItem)
	}
	s := api.NotifySettings{Stale: defaultStale}
	if err := site.Decode(it, &s); err != nil {
		return nil, err
	}
	if _, _, _, err := readNotify(s); err != nil {
		return nil, err
	}
	return site.Encode(s)
}

func (notifyPart) Refuse(string, site.Item, site.Item) error { return nil }
func (notifyPart) Loss(context.Context, string, site.Item, site.Item) (string, error) {
	return "", nil
}

func (p notifyPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	return site.Made{}, p.Change(ctx, name, nil, it)
}

func (p notifyPart) Change(ctx context.Context, _ string, _, now site.Item) error {
	var s api.NotifySettings
	if err := site.Decode(now, &s); err != nil {
		return err
	}
	_, err := p.s.SetNotify(ctx, api.NotifyChange{Site: &s.Site, Zone: &s.Zone, Remind: &s.Remind, Stale: &s.Stale})
	return err
}

// Delete goes back to what holds where nobody said anything.
func (p notifyPart) Delete(ctx context.Context, name string) error {
	return p.Change(ctx, name, nil, site.Item{"stale": defaultStale})
}

type targetPart struct{ s *Service }

func (targetPart) Section() string { return "notification_targets" }
func (targetPart) Remark() string {
	return "Secrets are the paths of files (password_file, key_file, token_file); *** stands for one that the appliance keeps."
}

func (p targetPart) Current(ctx context.Context) (map[string]site.Item, error) {
	ts, err := p.s.NotifyTargets(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{}
	for _, t := range ts {
		if out[t.Name], err = targetItem(t); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func targetItem(t notify.Target) (site.Item, error) {
	it, err := site.Encode(t)
	delete(it, "name")
	return it, err
}

func (targetPart) read(name string, it site.Item) (notify.Target, error) {
	if _, ok := it["name"]; ok {
		return notify.Target{}, holdfast.Errorf(holdfast.Invalid, "", "the name stands above the entry, not in it")
	}
	b, err := json.Marshal(it)
	if err != nil {
		return notify.Target{}, err
	}
	t, err := notify.Unseal(b)
	t.Name = name
	return t, err
}

func (p targetPart) Normal(name string, it site.Item) (site.Item, error) {
	t, err := p.read(name, it)
	if err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	if secret := t.Inline(); len(secret) > len(t.Masked()) {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a file that people share is no place for secrets").
			Advise("put the %s into a file on the appliance and name it by %s_file", secret[0], secret[0])
	}
	return targetItem(t)
}

func (p targetPart) Refuse(name string, was, now site.Item) error {
	t, err := p.read(name, now)
	if err != nil {
		return err
	}
	old, err := p.read(name, was)
	if err != nil {
		return err
	}
	if t.Kind() != old.Kind() && len(t.Masked()) > 0 {
		return holdfast.Errorf(holdfast.Invalid, "", "*** stands for no secret that the appliance keeps").Advise("name a file that holds it")
	}
	return nil
}

func (targetPart) Loss(context.Context, string, site.Item, site.Item) (string, error) { return "", nil }

func (p targetPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	t, err := p.read(name, it)
	if err == nil {
		_, err = p.s.AddNotifyTarget(ctx, t)
	}
	return site.Made{}, err
}

func (p targetPart) Change(ctx context.Context, name string, _, now site.Item) error {
	t, err := p.read(name, now)
	if err == nil {
		_, err = p.s.SetNotifyTarget(ctx, name, t)
	}
	return err
}

func (p targetPart) Delete(ctx context.Context, name string) error {
	_, err := p.s.DeleteNotifyTarget(ctx, name)
	return err
}
