package appliance

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/retain"
	"github.com/holdfast-backup/holdfast/appliance/site"
	"github.com/holdfast-backup/holdfast/catalog"
)

// A siteRetention is an entry of the section retention: the policy of "job NAME" or "pool NAME", or, as "settings", the zone.
type siteRetention struct {
	Policy string `json:"policy,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

type retentionPart struct{ s *Service }

func (retentionPart) Section() string { return "retention" }
func (retentionPart) Remark() string {
	return "Entries are called \"job NAME\" or \"pool NAME\" and have a policy; the entry settings has the zone in which days are counted."
}

func (p retentionPart) Current(ctx context.Context) (map[string]site.Item, error) {
	all, err := p.s.Policies(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{settingsItem: {"zone": all.Zone}}
	for kind, list := range map[string][]api.Policy{"job ": all.Jobs, "pool ": all.Pools} {
		for _, x := range list {
			out[kind+x.Name] = site.Item{"policy": x.Policy}
		}
	}
	return out, nil
}

func (retentionPart) Normal(name string, it site.Item) (site.Item, error) {
	var x siteRetention
	if err := site.Decode(it, &x); err != nil {
		return nil, err
	}
	if name == settingsItem {
		zone, err := job.Zone(x.Zone)
		if err != nil || x.Policy != "" {
			return nil, holdfast.Errorf(holdfast.Invalid, "", "%s has a zone, like Europe/Berlin, and nothing else", settingsItem)
		}
		return site.Item{"zone": zone.String()}, nil
	}
	kind, of, _ := strings.Cut(name, " ")
	if kind != "job" && kind != "pool" || of == "" || x.Zone != "" {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "an entry is called \"job NAME\" or \"pool NAME\" and has a policy")
	}
	policy, err := retain.ParsePolicy(x.Policy)
	if err != nil {
		return nil, err
	}
	return site.Item{"policy": policy.String()}, nil
}

func (retentionPart) Refuse(string, site.Item, site.Item) error { return nil }

// Loss warns wherever there are sets: a policy deletes. To take one away loses nothing.
func (p retentionPart) Loss(_ context.Context, _ string, _, now site.Item) (string, error) {
	sets, err := catalog.ListSets(p.s.d.cat)
	if err != nil || len(sets) == 0 || now == nil {
		return "", err
	}
	return fmt.Sprintf("of the %d backup sets there are, those that this no longer keeps are deleted by the next round; 'holdfast retention simulate' lists them", len(sets)), nil
}

func (p retentionPart) set(ctx context.Context, name string, it site.Item) error {
	var x siteRetention
	if err := site.Decode(it, &x); err != nil {
		return err
	}
	c := api.PolicyChange{Policy: x.Policy}
	switch kind, of, _ := strings.Cut(name, " "); {
	case name == settingsItem:
		c.Zone = &x.Zone
	case kind == "job":
		c.Job = of
	default:
		c.Pool = of
	}
	_, err := p.s.SetPolicy(ctx, c)
	return err
}

func (p retentionPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	return site.Made{}, p.set(ctx, name, it)
}

func (p retentionPart) Change(ctx context.Context, name string, _, now site.Item) error {
	return p.set(ctx, name, now)
}

// Delete takes a policy away: its sets stay until somebody deletes them. Settings go back to what holds where nobody said anything.
func (p retentionPart) Delete(ctx context.Context, name string) error {
	return p.set(ctx, name, site.Item{})
}
