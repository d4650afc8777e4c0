#include <pmr_debug/end_of_page_resource.hpp>

#include "metadata/arena.hpp"
#include "os/other_tools.hpp"
#include "report/comparison.hpp"
#include "resources/block_reports.hpp"
#include "resources/chain_check.hpp"
#include "resources/end_of_page_core.hpp"
#include "stack/capture.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "end_of_page_resource";
/// Address space for records, not memory.
constexpr std::size_t records_reserve = std::size_t{1} << 33;
constexpr unsigned rare_frames = 16;
constexpr std::size_t usual_canary = 256;

}  // namespace

namespace detail {

fence_core* fence_core::make(std::pmr::memory_resource* upstream, const end_of_page_options& o, const policy& p) {
    metadata::arena* const shared = metadata::process_arena();
    void* const place = shared != nullptr ? shared->allocate(sizeof(fence_core)) : nullptr;
    if (place == nullptr) {
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) fence_core;
    core->given = upstream;
    core->shape = fence_shape_of(p);
    const bool watches = upstream != nullptr && core->shape.checks && core->shape.threads == threading::synchronized;
    core->upstream = watches ? core->watch.over(upstream, core->errors) : upstream;
    core->rules = p;
    core->options = o;
    core->limited = o.limit_bytes != 0 || o.limit_blocks != 0;
    core->watched = os::under_valgrind() || os::under_asan();
    core->overrun_side = o.where == placement::before_guard;
    core->exact = p.exact_alignment && core->overrun_side;
    core->errors.handler.store(o.handler, std::memory_order_relaxed);
    // The registry knows the type, so no run-time type information is asked of users' resources.
    const metadata::resource_record* const below = upstream != nullptr ? metadata::find_resource(upstream) : nullptr;
    const bool guarded = upstream == nullptr || (below != nullptr && below->kind == metadata::resource_kind::page);
    core->share.open(o.quarantine_bytes, end_of_page_options().quarantine_bytes, metadata::quarantines_below(upstream));
    core->trapping = guarded && p.dead != dead_unit::keep;
    core->at_once = core->trapping && p.dead == dead_unit::trap_at_once;
    core->reuses = guarded && p.freed != reuse::never && p.dead != dead_unit::trap_at_once && !o.trap_freed.on();
    std::construct_at(&core->chosen, o.trap_freed, core->trapping && !core->at_once && !core->reuses);
    core->most_waiting = p.freed == reuse::quarantined ? o.quarantine_bytes / fence::page : 0;
    if (p.guard_bytes != 0) {
        const std::size_t wanted = o.canary_bytes != 0 ? o.canary_bytes : core->at_once ? fence::page : usual_canary;
        core->window = std::min(wanted, fence::page);
    }
    if (!core->memory.open(records_reserve, metadata::arena::home::shared) || (guarded && !fence::open_range(*core))) {
        core->share.close();
        core->memory.close();
        core->~fence_core();
        shared->free(place, sizeof(fence_core));
        throw std::bad_alloc();
    }
    return core;
}

void fence_core::destroy() noexcept {
    fence::close_range(*this);
    share.close();
    memory.close();
    this->~fence_core();
    metadata::process_arena()->free(this, sizeof(fence_core));
}

}  // namespace detail

end_of_page_resource_base::end_of_page_resource_base(std::pmr::memory_resource* upstream, bool use_upstream,
                                                     const end_of_page_options& o, const policy& p)
    : core_(nullptr) {
    const trace_id born = stack::capture_from_caller(rare_frames);
    if (use_upstream && upstream == nullptr) {
        detail::null_upstream(type_name, o.name, born);
    }
    core_ = detail::fence_core::make(upstream, o, p);
    core_->self = metadata::register_resource(metadata::resource_kind::end_of_page, type_name, o.name,
                                              static_cast<std::pmr::memory_resource*>(this), upstream, core_, born,
                                              core_->shape.checks ? detail::fence::owns : nullptr,
                                              detail::stats_by_address<end_of_page_resource_base>);
    metadata::set_describe_address(core_->self, detail::fence::describe_address);
    core_->watch.belongs_to(core_->self);
    metadata::set_unchecked(core_->self, core_->shape.threads == threading::unchecked);
    metadata::set_fork(core_->self, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<detail::fence_core*>(c);
        locks.take(mine.lock);
        locks.take(mine.bump);
        mine.usage.hold(locks);
        mine.memory.hold(locks);
    });
    detail::report_cycle(core_->self, core_->errors);
}

end_of_page_resource_base::~end_of_page_resource_base() {
    if (core_->shape.checks) {
        detail::fence::check_all(*core_);
        detail::fence::leave_remains(*core_, detail::fence::report_live(*core_) != 0);
    }
    metadata::unregister_resource(core_->self, stack::capture_from_caller(rare_frames));
    detail::take_core(core_, this)->destroy();
}

void* end_of_page_resource_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void end_of_page_resource_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, p, bytes, alignment);
}

bool end_of_page_resource_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

std::pmr::memory_resource* end_of_page_resource_base::upstream_resource() const noexcept {
    return core_->given;
}

std::string_view end_of_page_resource_base::name() const noexcept {
    return metadata::describe(core_->self).name;
}

statistics end_of_page_resource_base::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    using namespace detail::fence;
    detail::fence_core& core = *core_;
    statistics s = core.usage.snapshot();
    const os::look seen(core.lock);
    s.upstream_bytes = !core.guarded_range() ? core.unit_bytes
                       : core.wrapped        ? core.range_bytes
                                             : core.frontier * granule;
    s.resident_bytes = core.pending_bytes.load(std::memory_order_relaxed) + core.warm_count * (granule / 2);
    for (const unit* u = seen.is_whole() ? core.active.first : nullptr; u != nullptr; u = u->after) {
        for (std::uint32_t i = 0; i < u->capacity; ++i) {
            const slot_record& r = u->records[i];
            if (r.state.load(std::memory_order_acquire) == slot_state::live) {
                s.resident_bytes += os::round_up(r.size, page);
            }
        }
    }
    s.overhead_bytes = core.memory.used() + sizeof(detail::fence_core);
    s.retired_units = core.retired.size + core.kept.size;
    s.untrapped_units = core.untrapped_units;
    s.untrapped_blocks = core.chosen.missed();
    s.recycled_units = core.recycled_units;
    s.quarantined_bytes =
        core.pending_bytes.load(std::memory_order_relaxed) + (core.guarded_range() ? 0 : core.retired_bytes);
    s.quarantine_limit = core.share.limit();
    return s;
}

guard_statistics end_of_page_resource_base::guards() const noexcept {
    guard_statistics g;
    g.protected_blocks = core_->protected_blocks.load(std::memory_order_relaxed);
    g.unguarded_blocks = core_->unguarded_blocks.load(std::memory_order_relaxed);
    const std::uint64_t all = core_->usage.snapshot().total_allocations;
    const std::uint64_t others = g.protected_blocks + g.unguarded_blocks;
    g.marker_blocks = all > others ? all - others : 0;
    const os::look seen(core_->lock);
    g.moved_strips = core_->moved_strips;
    g.work = os::guards_work();
    return g;
}

error_counts end_of_page_resource_base::errors() const noexcept {
    return detail::snapshot(core_->errors);
}

bool end_of_page_resource_base::ok() const noexcept {
    return detail::ok(core_->errors);
}

std::size_t end_of_page_resource_base::check() noexcept {
    return core_->shape.checks ? detail::fence::check_all(*core_) : 0;
}

std::size_t end_of_page_resource_base::report_leaks() noexcept {
    return core_->shape.checks ? detail::fence::report_live(*core_) : 0;
}

void end_of_page_resource_base::rebind_thread() noexcept {
    core_->thread.release();
}

}  // namespace pmr_debug
