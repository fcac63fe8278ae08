package appliance

import (
	"context"
	"errors"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
)

// Labels are settings of the catalog, so that one stays on a VM that its host does not list for a while.
const (
	protectedHost = "protected.host."
	protectedVM   = "protected.vm."
)

// labels says what is protected.
type labels map[string]bool

func (l labels) host(id holdfast.HostID) bool { return l[protectedHost+id.String()] }
func (l labels) vm(id holdfast.VMID) bool     { return l[protectedVM+id.String()] }

func (s *Service) labels() (labels, error) {
	out := labels{}
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		all, err := tx.Settings()
		for name := range all {
			out[name] = true
		}
		return err
	})
	return out, err
}

// protect puts a label on or takes it off. Either is told as an event, for it is a decision about safety.
func (s *Service) protect(ctx context.Context, key, what string, l api.Label) error {
	err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if l.Protected {
			return tx.PutSetting(key, []byte("true"))
		}
		return tx.DeleteSetting(key)
	})
	if err != nil {
		return err
	}
	ev := holdfast.Event{Type: holdfast.EventLabelChanged, Text: what + " is protected: it is no target of restores", Fields: map[string]string{"target": what}}
	if !l.Protected {
		ev.Text, ev.Severity = what+" is not protected any more: restores may change it", holdfast.Warning
	}
	s.d.events.Emit(ev)
	return nil
}

func (s *Service) hostRecord(name string) (rec catalog.Host, err error) {
	if name == "" {
		return rec, holdfast.Errorf(holdfast.Invalid, "find host", "no host is named").Advise("name it with --host; 'holdfast host list' shows the hosts there are")
	}
	err = s.d.cat.View(func(tx *catalog.Tx) (err error) {
		rec, err = tx.FindHost(name)
		return advise(err, "'holdfast host list' shows the hosts there are")
	})
	return rec, err
}

// ProtectVM implements api.Service. A VM that no host lists is named by its id.
func (s *Service) ProtectVM(ctx context.Context, name string, l api.Label) (api.VM, error) {
	var rec catalog.VM
	err := s.d.cat.View(func(tx *catalog.Tx) (err error) {
		rec, err = s.oneVM(tx, name)
		return err
	})
	if errors.Is(err, holdfast.NotExist) {
		if id, bad := holdfast.ParseID(name); bad == nil {
			rec, err = catalog.VM{ID: holdfast.VMID{ID: id}, Name: name, State: "gone"}, nil
		}
	}
	if err != nil {
		return api.VM{}, err
	}
	if err := s.protect(ctx, protectedVM+rec.ID.String(), "VM "+rec.Name, l); err != nil {
		return api.VM{}, err
	}
	vms, err := s.VMs(ctx)
	for _, v := range vms {
		if v.ID == rec.ID.String() {
			return v, err
		}
	}
	return api.VM{ID: rec.ID.String(), Name: rec.Name, State: rec.State, Protected: l.Protected, Disks: []api.VMDisk{}}, err
}
