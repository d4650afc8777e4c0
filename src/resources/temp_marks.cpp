// Marks of a temp resource. They are the user's objects, so the arena only trusts their order.

#include "resources/block_reports.hpp"
#include "resources/temp_core.hpp"
#include "stack/capture.hpp"

namespace pmr_debug {

namespace detail {

void temp_core::open_mark(temp_mark& m, trace_id here) noexcept {
    const os::brief_hold<true> hold(lock);
    m.taken_ = here;
    m.at_ = position_held();
    m.older_ = marks;
    if (marks != nullptr) {
        marks->newer_ = &m;
    }
    marks = &m;
}

void temp_core::close_mark(temp_mark& m, trace_id here, std::uint32_t me, bool last) noexcept {
    bool open = false;
    bool in_order = true;
    {
        const os::brief_hold<true> hold(lock);
        open = m.open_;
        for (const temp_mark* younger = m.newer_; younger != nullptr; younger = younger->newer_) {
            in_order = in_order && !younger->open_;
        }
        m.open_ = open && !in_order && !last;
        if (last) {
            (m.newer_ != nullptr ? m.newer_->older_ : marks) = m.older_;
            if (m.older_ != nullptr) {
                m.older_->newer_ = m.newer_;
            }
        }
    }
    if (open && in_order) {
        if (shape.checks && options.audit_winked_out) {
            tell_live(m.at_.records, "rewound while in use: what they own elsewhere is lost");
        }
        unwind(m.at_, here, me, temp_rewind_ahead);
    } else if (open && shape.checks) {
        tell_mark(m, "a younger mark is still open, whose blocks this would take away");
    } else if (!last && shape.checks) {
        tell_mark(m, "this mark was rewound before, or voided by release()");
    }
}

void temp_core::void_marks(bool dead) noexcept {
    const os::brief_hold<true> hold(lock);
    for (temp_mark* m = marks; m != nullptr; m = m->older_) {
        m->open_ = false;
        m->core_ = dead ? nullptr : m->core_;
    }
    if (dead) {
        marks = nullptr;
    }
}

}  // namespace detail

temp_mark::temp_mark(temp_resource_base& arena) noexcept : core_(arena.core_), arena_(&arena) {
    const trace_id here = stack::capture_from_caller(core_->alloc_frames);
    core_->enter(here);
    core_->open_mark(*this, here);
}

temp_mark::~temp_mark() {
    if (core_ != nullptr) {
        const trace_id here = stack::capture_from_caller(core_->free_frames);
        core_->close_mark(*this, here, core_->enter(here), true);
    }
}

void temp_mark::rewind() noexcept {
    if (core_ == nullptr) {
        detail::report_destroyed(arena_, "temp_resource", nullptr, 0, 0);
        return;
    }
    const trace_id here = stack::capture_from_caller(core_->free_frames);
    core_->close_mark(*this, here, core_->enter(here), false);
}

void temp_resource_base::rewind(temp_mark& m) noexcept {
    if (m.core_ == core_) {
        m.rewind();
    } else if (core_->shape.checks) {
        core_->tell_mark(m, "this mark was made by another arena");
    }
}

}  // namespace pmr_debug
