package appliance

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/pools"
)

// PoolSpace implements api.Service.
func (s *Service) PoolSpace(ctx context.Context, name string) (api.PoolSpace, error) {
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return api.PoolSpace{}, err
	}
	x, ok := p.(pools.Explainer)
	if !ok {
		return api.PoolSpace{}, holdfast.Errorf(holdfast.Unsupported, "explain space", "the sets of a pool of kind %q share nothing: each takes what 'holdfast set show' says", rec.Kind)
	}
	return x.Explain(ctx)
}
