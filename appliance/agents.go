package appliance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Enroll implements api.Agents. The key is used up only if the certificate was made.
func (s *Service) Enroll(ctx context.Context, remote string, r wire.EnrollRequest) (wire.EnrollResponse, error) {
	resp, err := s.enroll(ctx, remote, r)
	if err != nil {
		s.d.refusedAt(remote, fmt.Errorf("enrolment: %w", err))
		return resp, err
	}
	s.d.events.Emit(holdfast.Event{Type: holdfast.EventHostEnrolled, Text: "host " + resp.Name + " was enrolled",
		Fields: map[string]string{"host": resp.Name, "id": resp.Host.String(), "from": remote}})
	return resp, nil
}

func (s *Service) enroll(ctx context.Context, remote string, r wire.EnrollRequest) (wire.EnrollResponse, error) {
	var resp wire.EnrollResponse
	hash, err := s.d.auth.CheckAccessKey(r.Key)
	if err != nil {
		return resp, err
	}
	now := s.now()
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		key, err := tx.UseEnrolKey(catalog.KeyHash(hash), now)
		if err != nil {
			return err
		}
		h, err := tx.HostByName(key.HostName)
		switch {
		case errors.Is(err, holdfast.NotExist):
			h = catalog.Host{ID: holdfast.HostID{ID: holdfast.NewID()}, Name: key.HostName}
		case err != nil:
			return err
		}
		der, err := s.d.auth.IssueAgent(r.CSR, h.ID, h.Name)
		if err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, "enrol", "%w", err)
		}
		h.State, h.CertSerial, h.Address = catalog.HostEnrolled, auth.SerialOf(leaf), remote
		resp = wire.EnrollResponse{Host: h.ID, Name: h.Name, Certificate: der, CA: s.d.auth.CA()}
		return tx.PutHost(h)
	})
	return resp, err
}

// Inventory implements api.Agents.
func (s *Service) Inventory(ctx context.Context, h api.AgentHost, inv wire.Inventory) error {
	if err := s.remember(ctx, h); err != nil {
		return err
	}
	if inv.Survey != nil {
		s.d.surveys.answer(h.ID, inv)
		if inv.Survey.Error != nil { // then it is no inventory
			return nil
		}
	}
	return s.d.jobs.Inventory(ctx, h.ID, inv)
}

// Tasks implements api.Agents.
func (s *Service) Tasks(ctx context.Context, h api.AgentHost, send func(wire.Notice) error) error {
	if err := s.remember(ctx, h); err != nil {
		return err
	}
	err := s.d.jobs.Tasks(ctx, h.ID, h.Name, send)
	if e := s.seen(h.ID); e != nil {
		s.d.c.Log.Error("when a host was last seen could not be recorded", "host", h.Name, "error", e)
	}
	return err
}

// Report implements api.Agents.
func (s *Service) Report(_ context.Context, h api.AgentHost, rs []wire.Report) error {
	return s.d.jobs.Report(h.ID, rs)
}

// remember makes the record of a host whose certificate is good but which the catalog does not know: the catalog was lost.
func (s *Service) remember(ctx context.Context, h api.AgentHost) error {
	known := true
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		_, err := tx.Host(h.ID)
		if errors.Is(err, holdfast.NotExist) {
			known = false
			return nil
		}
		return err
	})
	if err != nil || known {
		return err
	}
	return s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		rec := catalog.Host{ID: h.ID, Name: h.Name, State: catalog.HostEnrolled, LastSeen: s.now()}
		err := tx.PutHost(rec)
		if errors.Is(err, holdfast.Exist) { // somebody else has the name by now
			rec.Name += " " + h.ID.String()[:8]
			err = tx.PutHost(rec)
		}
		return err
	})
}

// seen records that a host was there until now. A host that was removed meanwhile stays removed.
func (s *Service) seen(id holdfast.HostID) error {
	return s.d.cat.Update(context.WithoutCancel(s.d.ctx), func(tx *catalog.Tx) error {
		h, err := tx.Host(id)
		if errors.Is(err, holdfast.NotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		h.LastSeen = s.now()
		return tx.PutHost(h)
	})
}
