package appliance

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/site"
)

// siteParts are the sections of a site file, in the order in which things need each other.
func (s *Service) siteParts() []site.Part {
	return []site.Part{poolPart{s}, networkPart{s}, hostPart{s}, notifyPart{s}, targetPart{s}, jobPart{s}, retentionPart{s}, vmPart{s}}
}

// ExportConfig implements api.Config.
func (s *Service) ExportConfig(ctx context.Context) (api.ConfigText, error) {
	parts := s.siteParts()
	doc, err := site.Current(ctx, parts)
	if err != nil {
		return api.ConfigText{}, err
	}
	text, err := site.Format(doc, parts)
	return api.ConfigText{Text: string(text)}, err
}

// DiffConfig implements api.Config.
func (s *Service) DiffConfig(ctx context.Context, t api.ConfigText) (site.Plan, error) {
	parts := s.siteParts()
	doc, err := site.Parse([]byte(t.Text), parts)
	if err != nil {
		return site.Plan{}, err
	}
	return site.Diff(ctx, doc, parts)
}

// ApplyConfig implements api.Config. One file is applied at a time. The client's going away does not stop it half-way.
func (s *Service) ApplyConfig(ctx context.Context, a api.ConfigApply) (api.Applied, error) {
	const op = "apply site file"
	if !s.d.applying.TryLock() {
		return api.Applied{}, holdfast.Errorf(holdfast.Busy, op, "another file is being applied").Advise("try again when it is done")
	}
	defer s.d.applying.Unlock()
	plan, err := s.DiffConfig(ctx, api.ConfigText{Text: a.Text})
	if err != nil {
		return api.Applied{}, err
	}
	if a.Plan != "" && a.Plan != plan.ID {
		return api.Applied{}, holdfast.Errorf(holdfast.Busy, op, "the site has changed since the plan was made; nothing was done").Advise("look at the difference again and repeat the command")
	}
	r, err := site.Apply(context.WithoutCancel(ctx), plan, a.Consent, s.siteParts())
	out := api.Applied{Plan: plan, Done: r.Done, Made: r.Made}
	if err != nil {
		if r.Done == 0 && len(r.Made) == 0 {
			return out, err
		}
		f := api.FailureOf(err)
		out.Error = &f
	}
	return out, nil
}
