#include <pmr_debug/general_purpose_resource.hpp>

#include "os/other_tools.hpp"
#include "os/output.hpp"
#include "report/comparison.hpp"
#include "resources/block_reports.hpp"
#include "resources/chain_check.hpp"
#include "resources/general_purpose_core.hpp"
#include "resources/general_purpose_engine.hpp"
#include "resources/general_purpose_pages.hpp"

#include <cstring>
#include <memory>
#include <mutex>
#include <new>

namespace pmr_debug {

namespace detail {

namespace {

constexpr const char* type_name = "general_purpose_resource";
constexpr std::size_t private_range = std::size_t{1} << 34;
constexpr unsigned construction_frames = 16;

/// Thrown out of a constructor when there is no private memory: std::bad_alloc, as every failure of memory.
general_purpose_core* make_core(std::pmr::memory_resource* upstream, const general_purpose_options& o,
                                const policy& p) {
    // What is write-protected needs mappings of its own.
    metadata::arena* const memory = metadata::arena::open_within(
        private_range, p.protect_metadata ? metadata::arena::home::own_range : metadata::arena::home::shared);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    // The first pieces of a fresh arena: zeroed pages, which is what an empty table of caches is.
    void* const place = memory->allocate(sizeof(general_purpose_core));
    void* const tables = memory->allocate(2 * cache_slots * sizeof(std::atomic<thread_cache*>));
    void* gate = nullptr;
    if (p.protect_metadata) {
        metadata::arena* const shared = metadata::process_arena();
        gate = shared != nullptr ? shared->allocate(sizeof(write_gate)) : nullptr;
        memory->expect_protection();
    }
    if (place == nullptr || tables == nullptr || (p.protect_metadata && gate == nullptr)) {
        metadata::arena::close_within(memory);
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) general_purpose_core;
    core->memory = memory;
    core->fast_caches = static_cast<std::atomic<thread_cache*>*>(tables);
    core->all_caches = core->fast_caches + cache_slots;
    core->gate = gate != nullptr ? ::new (gate) write_gate : nullptr;
    core->rules = p;
    core->options = o;
    core->alloc_frames = p.alloc_frames;
    core->free_frames = p.free_frames;
    core->guard_bytes = p.guard_bytes;
    core->exact = p.exact_alignment;
    core->record_bytes = !p.checks                                   ? 0
                         : p.alloc_frames != 0 || p.free_frames != 0 ? sizeof(traced_record)
                                                                     : sizeof(slot_record);
    core->memcheck = os::under_valgrind();
    core->poisons = os::under_asan();
    core->limited = o.limit_bytes != 0 || o.limit_blocks != 0;
    core->tally.handler = o.handler;
    core->next_chunk_bytes = std::size_t{1} << 20;
    core->address_share = os::share_of_addresses(o.address_space_bytes, 2);
    core->given = upstream;
    // Not with write-protected records: the watch writes while the upstream is called.
    const bool watches = p.checks && p.threads == threading::synchronized && !p.protect_metadata;
    core->upstream = watches ? core->watch.over(upstream, core->tally) : upstream;
    if (const metadata::resource_record* const r = metadata::find_resource(upstream);
        r != nullptr && r->kind == metadata::resource_kind::page) {
        // The registry knows the type, so no run-time type information is asked of users' resources.
        core->over_pages = true;
    }
    // Of other upstreams nobody knows what their memory is for: a device may know its pages by their place.
    core->discards = (core->over_pages || upstream == std::pmr::new_delete_resource()) &&
                     os::page_size() == std::size_t{1} << metadata::address_map::page_bits;
    core->trapping = core->over_pages && p.dead != dead_unit::keep && p.freed != reuse::immediate;
    std::construct_at(&core->chosen, o.trap_freed,
                      core->trapping && p.dead == dead_unit::trap_at_once && p.freed == reuse::never);
    core->share.open(o.quarantine_bytes, general_purpose_options().quarantine_bytes,
                     metadata::quarantines_below(upstream));
    core->belted = core->trapping && p.dead == dead_unit::trap && p.freed == reuse::never;
    return core;
}

/// Effects: makes the records writable. The system may refuse for a moment, as at a limit that another thread is about
/// to get away from. If it goes on refusing there is no way to record anything, and the process ends with a message.
void make_writable(metadata::arena& memory) noexcept {
    for (int tries = 0; !memory.unprotect(); ++tries) {
        if (tries == 100) {
            constexpr std::string_view text =
                "pmr_debug: general_purpose_resource: the system refuses to make write-protected records writable "
                "(policy::protect_metadata)\n";
            os::write_all(2, text.data(), text.size());
            os::abort_process();
        }
        os::sleep_ms(1);
    }
}

}  // namespace

writable_section::writable_section(general_purpose_core& core) noexcept : gate_(core.gate), memory_(core.memory) {
    if (gate_ == nullptr) {
        return;
    }
    const std::uint32_t me = os::this_thread().number;
    if (gate_->inside.load(std::memory_order_relaxed) != me) {
        gate_->lock.lock();
        gate_->inside.store(me, std::memory_order_relaxed);
        make_writable(*memory_);
    }
    gate_->depth += 1;
}

writable_section::~writable_section() {
    if (gate_ == nullptr) {
        return;
    }
    gate_->depth -= 1;
    if (gate_->depth == 0) {
        memory_->protect();  // a refusal leaves the records writable, which harms nothing by itself
        gate_->inside.store(0, std::memory_order_relaxed);
        gate_->lock.unlock();
    }
}

outside_section::outside_section(general_purpose_core& core) noexcept : gate_(core.gate), memory_(core.memory) {
    if (gate_ != nullptr && gate_->inside.load(std::memory_order_relaxed) != os::this_thread().number) {
        gate_ = nullptr;
    }
    if (gate_ != nullptr) {
        depth_ = gate_->depth;
        gate_->depth = 0;
        memory_->protect();
        gate_->inside.store(0, std::memory_order_relaxed);
        gate_->lock.unlock();
    }
}

outside_section::~outside_section() {
    if (gate_ != nullptr) {
        gate_->lock.lock();
        gate_->inside.store(os::this_thread().number, std::memory_order_relaxed);
        make_writable(*memory_);
        gate_->depth = depth_;
    }
}

void raise_from(general_purpose_core& core, report& r) noexcept {
    count_error(core.tally, r.kind);
    const outside_section told(core);
    tell_error(core.tally, r);
}

namespace {

/// What can be said without a lock: all of it are numbers.
statistics count_use(general_purpose_core& core) noexcept {
    const live_totals now = sum_caches(core);
    statistics s;
    s.live_blocks = now.blocks();
    s.live_bytes = now.bytes();
    s.peak_blocks = core.peak_blocks.load(std::memory_order_relaxed);
    s.peak_bytes = core.peak_bytes.load(std::memory_order_relaxed);
    s.total_allocations = now.allocations;
    s.total_deallocations = now.deallocations;
    s.total_bytes = now.allocated_bytes;
    s.failed_allocations = core.failed.load(std::memory_order_relaxed);
    s.upstream_bytes = core.held_bytes;
    s.retired_units = core.retired.count + core.pending_count;
    s.untrapped_units = core.untrapped_units;
    s.untrapped_blocks = core.chosen.missed();
    s.recycled_units = core.recycled_units;
    return s;
}

/// True if the gate is open to this thread. Not in a signal handler that interrupted somebody in the gate.
bool may_enter(write_gate* gate) noexcept {
    if (gate == nullptr) {
        return true;
    }
    const os::look seen(gate->lock);
    return seen.is_whole();
}

}  // namespace

}  // namespace detail

using detail::general_purpose_core;
using detail::writable_section;

general_purpose_resource_base::general_purpose_resource_base(std::pmr::memory_resource* upstream,
                                                             const general_purpose_options& o, const policy& p)
    : core_(nullptr) {
    const trace_id born = stack::capture_from_caller(detail::construction_frames);
    if (upstream == nullptr) {
        detail::null_upstream(detail::type_name, o.name, born);
    }
    core_ = detail::make_core(upstream, o, p);
    core_->record =
        metadata::register_resource(metadata::resource_kind::general_purpose, detail::type_name, o.name,
                                    static_cast<std::pmr::memory_resource*>(this), upstream, core_, born,
                                    detail::owns_block, detail::stats_by_address<general_purpose_resource_base>);
    core_->watch.belongs_to(core_->record);
    metadata::set_unchecked(core_->record, p.threads == threading::unchecked);
    metadata::set_describe_address(core_->record, detail::describe_address);
    metadata::set_fork(core_->record, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<detail::general_purpose_core*>(c);
        if (mine.gate != nullptr) {  // all others are taken within it only
            locks.take(mine.gate->lock);
            return;
        }
        locks.take(mine.shared_cache_lock);
        locks.take(mine.limit_lock);
        locks.take(mine.lock);
        mine.memory->hold(locks);
    });
    core_->options.name = core_->record != nullptr ? std::string_view(core_->record->name) : std::string_view();
    if (core_->gate != nullptr) {
        const writable_section leaves_it_protected(*core_);
    }
    detail::report_cycle(core_->record, core_->tally);
}

general_purpose_resource_base::~general_purpose_resource_base() {
    general_purpose_core& core = *core_;
    const os::unseen_by_valgrind unseen(core.memcheck);
    if (core.gate != nullptr) {  // for good: there is no way back from here
        core.gate->lock.lock();
        detail::make_writable(*core.memory);
        core.gate->lock.unlock();
        metadata::process_arena()->free(core.gate, sizeof(detail::write_gate));
        core.gate = nullptr;
    }
    if (core.rules.checks) {
        detail::check_all(core);
        detail::leave_remains(core, detail::report_live(core) != 0);
    }
    metadata::unregister_resource(core.record, stack::capture_from_caller(detail::construction_frames));
    if (core.memcheck) {
        detail::tell_end(core);
    }
    (void)detail::take_core(core_, this);
    detail::release_all(core);
    core.share.close();
    metadata::arena::close_within(core.memory);
}

void* general_purpose_resource_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, detail::type_name, nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void general_purpose_resource_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, detail::type_name, p, bytes, alignment);
}

bool general_purpose_resource_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

std::pmr::memory_resource* general_purpose_resource_base::upstream_resource() const noexcept {
    return core_->given;
}

std::string_view general_purpose_resource_base::name() const noexcept {
    return core_->options.name;
}

error_counts general_purpose_resource_base::errors() const noexcept {
    return detail::snapshot(core_->tally);
}

bool general_purpose_resource_base::ok() const noexcept {
    return detail::ok(core_->tally);
}

std::size_t general_purpose_resource_base::check() noexcept {
    const writable_section section(*core_);
    const os::unseen_by_valgrind unseen(core_->memcheck);
    return detail::check_all(*core_);
}

std::size_t general_purpose_resource_base::report_leaks() noexcept {
    const writable_section section(*core_);
    return detail::report_live(*core_);
}

statistics general_purpose_resource_base::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    general_purpose_core& core = *core_;
    if (!detail::may_enter(core.gate)) {
        return detail::count_use(core);
    }
    const writable_section section(core);
    const detail::live_totals now = detail::sum_caches(core);
    detail::raise_peak(core, now.blocks(), now.bytes());
    const os::look seen(core.lock);
    statistics s = detail::count_use(core);
    for (const detail::unit* u = seen.is_whole() ? core.units : nullptr; u != nullptr; u = u->following) {
        if (!u->trapped()) {
            const bool all = u->large || u->again.load(std::memory_order_relaxed);
            const std::size_t used =
                all ? u->size : u->front() + std::size_t{u->prepared.load(std::memory_order_relaxed)} * u->slot_size;
            const std::size_t gone = detail::bytes_in(u->gone.load(std::memory_order_relaxed));
            s.resident_bytes += used > gone ? used - gone : 0;
        }
    }
    s.resident_bytes += core.warm_count * detail::slab::size;
    s.overhead_bytes = core.memory->used() - core.dropped_records;
    s.reused_slots = core.reused_slots.load(std::memory_order_relaxed);
    s.quarantined_bytes = core.untrapped_bytes + detail::kept_freed(core, now);
    s.quarantine_limit = core.share.limit();
    return s;
}

void general_purpose_resource_base::rebind_thread() noexcept {
    const writable_section section(*core_);
    core_->bound_thread = 0;
}

}  // namespace pmr_debug
