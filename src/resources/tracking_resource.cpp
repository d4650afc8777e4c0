#include <pmr_debug/tracking_resource.hpp>

#include "metadata/arena.hpp"
#include "report/comparison.hpp"
#include "resources/chain_check.hpp"
#include "resources/tracking_core.hpp"
#include "stack/capture.hpp"

#include <bit>
#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "tracking_resource";
// Address space, not memory: records of some 50 million live blocks. Thousands of resources find room beside each
// other.
constexpr std::size_t records_reserve = std::size_t{1} << 32;
// Of births and deaths.
constexpr unsigned rare_frames = 16;

}  // namespace

namespace detail {

namespace {

bool tracking_owns(void* core, const void* p, metadata::owned_block* out) noexcept {
    auto& c = *static_cast<tracking_core*>(core);
    // Without locks only the thread that used the resource last may look.
    if (c.shape.threads == threading::unchecked && !c.thread.is_mine()) {
        return false;
    }
    metadata::block_entry e;
    if (!c.blocks.find(p, e) || !e.live) {
        return false;
    }
    *out = {.block = metadata::describe(e), .allocated = e.allocated};
    return true;
}

void tracking_visit_live(void* core, void (*visit)(const void* p, void* context) noexcept, void* context) noexcept {
    auto& c = *static_cast<tracking_core*>(core);
    if (c.shape.threads == threading::unchecked && !c.thread.is_mine()) {
        return;
    }
    c.blocks.for_each_place([&](const metadata::block_table::place& b) noexcept { visit(b.address, context); });
}

bool tracking_describes(void* core, std::uintptr_t address, metadata::address_finding* out) noexcept {
    bool found = false;
    static_cast<const tracking_core*>(core)->blocks.peek([&](const metadata::block_entry& e) noexcept {
        const auto start = reinterpret_cast<std::uintptr_t>(e.address);
        if (address < start || address - start >= e.size) {
            return true;
        }
        found = true;
        *out = metadata::find_in(address, metadata::describe(e), e.allocated, e.freed);
        out->gone_back = !e.live;
        return !e.live;  // a live block may have the address now
    });
    return found;
}

}  // namespace

tracking_core* tracking_core::make(std::pmr::memory_resource* upstream, const tracking_options& o, const policy& p,
                                   const std::pmr::memory_resource* owner, trace_id born) {
    metadata::arena* const shared = metadata::process_arena();
    void* const place = shared != nullptr ? shared->allocate(sizeof(tracking_core)) : nullptr;
    if (place == nullptr) {
        throw std::bad_alloc();
    }
    auto* const core = ::new (place) tracking_core;
    core->given = upstream;
    core->shape = tracking_shape_of(p);
    const bool watches = core->shape.checks && core->shape.threads == threading::synchronized;
    core->upstream = watches ? core->watch.over(upstream, core->errors) : upstream;
    core->alloc_frames = p.alloc_frames;
    core->free_frames = p.free_frames;
    core->limit_bytes = o.limit_bytes;
    core->limit_blocks = o.limit_blocks;
    core->limited = o.limit_bytes != 0 || o.limit_blocks != 0;
    core->audit_winked_out = o.audit_winked_out;
    core->errors.handler.store(o.handler, std::memory_order_relaxed);
    if (core->shape.checks) {
        const unsigned shards = core->shape.threads == threading::synchronized ? metadata::block_table::max_shards : 1;
        if (!core->memory.open(records_reserve, metadata::arena::home::shared) ||
            !core->blocks.open(core->memory, shards, o.freed_records)) {
            core->memory.close();
            core->~tracking_core();
            shared->free(place, sizeof(tracking_core));
            throw std::bad_alloc();
        }
    }
    core->self = metadata::register_resource(metadata::resource_kind::tracking, type_name, o.name, owner, upstream,
                                             core, born, core->shape.checks ? tracking_owns : nullptr,
                                             stats_by_address<tracking_resource_base>);
    if (core->shape.checks) {
        metadata::set_describe_address(core->self, tracking_describes);
        metadata::set_visit_live(core->self, tracking_visit_live);
    }
    core->watch.belongs_to(core->self);
    metadata::set_unchecked(core->self, core->shape.threads == threading::unchecked);
    metadata::set_fork(core->self, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<tracking_core*>(c);
        mine.blocks.hold(locks);
        mine.usage.hold(locks);
        mine.memory.hold(locks);
    });
    report_cycle(core->self, core->errors);
    return core;
}

void tracking_core::destroy() noexcept {
    memory.close();
    this->~tracking_core();
    metadata::process_arena()->free(this, sizeof(tracking_core));
}

std::size_t tracking_core::forget(trace_id here) noexcept {
    if (shape.checks) {
        thread.enter(shape.threads, here, errors, self);
        if (audit_winked_out) {
            reports().winked_out();
        }
        blocks.erase_live(here);
    }
    return usage.remove_all();
}

void tracking_core::refuse_request(std::size_t bytes, std::size_t alignment) {
    usage.fail();
    if (shape.checks && !std::has_single_bit(alignment)) {
        reports().request(error_kind::bad_alignment, nullptr, bytes, alignment);
    }
    throw std::bad_alloc();
}

void tracking_core::reserve(std::size_t bytes, std::size_t alignment) {
    const usage_counters::verdict v = usage.reserve<true>(bytes, limit_bytes, limit_blocks);
    if (!v.allowed) {
        usage.fail();
        if (shape.checks) {
            reports().limit(v.limit, v.in_use, bytes, alignment);
        }
        throw std::bad_alloc();
    }
}

void tracking_core::give_up(std::size_t bytes) noexcept {
    usage.fail();
    if (limited) {
        usage.abandon(bytes);
    }
}

void tracking_core::refuse_memory(void* p, std::size_t bytes, std::size_t alignment) {
    give_up(bytes);
    if (shape.checks) {
        reports().request(p == nullptr ? error_kind::upstream_null : error_kind::upstream_misaligned, p, bytes,
                          alignment);
    }
    if (p != nullptr) {
        upstream->deallocate(p, bytes, alignment);
    }
    throw std::bad_alloc();
}

void tracking_core::refuse_record(metadata::block_table::outcome why, void* p, std::size_t bytes,
                                  std::size_t alignment) {
    give_up(bytes);
    if (why == metadata::block_table::outcome::occupied) {
        // It belongs to the block that is there: giving it back would free that.
        metadata::block_entry existing;
        blocks.find(p, existing);
        reports().block(error_kind::upstream_overlap, p, existing, bytes, alignment);
    } else {
        upstream->deallocate(p, bytes, alignment);
    }
    throw std::bad_alloc();
}

void tracking_core::deallocate_oddly(void* p, std::size_t bytes, std::size_t alignment, trace_id here,
                                     std::uint32_t me) noexcept {
    using outcome = metadata::block_table::outcome;
    if (reports().is_anothers(p, bytes, alignment)) {
        return;
    }
    metadata::block_entry known;
    const outcome erased = p == nullptr ? outcome::unknown : blocks.erase(p, here, me, known);
    if (erased != outcome::done) {
        reports().bad_pointer(erased, p, known, bytes, alignment);
        return;
    }
    usage.remove<true>(known.size);
    reports().mismatch(p, known, bytes, alignment);
    upstream->deallocate(p, known.size, known.alignment);
}

}  // namespace detail

tracking_resource_base::tracking_resource_base(std::pmr::memory_resource* upstream, const tracking_options& o,
                                               const policy& p)
    : core_(nullptr) {
    const trace_id born = stack::capture_from_caller(rare_frames);
    if (upstream == nullptr) {
        detail::null_upstream(type_name, o.name, born);
    }
    core_ = detail::tracking_core::make(upstream, o, p, this, born);
}

tracking_resource_base::~tracking_resource_base() {
    if (core_->shape.checks) {
        core_->reports().leaks();
        core_->reports().leave_blocks();
    }
    metadata::unregister_resource(core_->self, stack::capture_from_caller(rare_frames));
    detail::take_core(core_, this)->destroy();
}

void* tracking_resource_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void tracking_resource_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, p, bytes, alignment);
}

bool tracking_resource_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

std::pmr::memory_resource* tracking_resource_base::upstream_resource() const noexcept {
    return core_->given;
}

std::string_view tracking_resource_base::name() const noexcept {
    return metadata::describe(core_->self).name;
}

statistics tracking_resource_base::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    statistics s = core_->usage.snapshot();
    s.upstream_bytes = s.live_bytes;
    s.overhead_bytes = core_->memory.used() + sizeof(detail::tracking_core);
    return s;
}

size_histogram tracking_resource_base::histogram() const noexcept {
    return {.counts = core_->usage.by_size()};
}

error_counts tracking_resource_base::errors() const noexcept {
    return detail::snapshot(core_->errors);
}

bool tracking_resource_base::ok() const noexcept {
    return detail::ok(core_->errors);
}

std::size_t tracking_resource_base::report_leaks() noexcept {
    return core_->shape.checks ? core_->reports().leaks() : 0;
}

std::size_t tracking_resource_base::before_upstream_release() noexcept {
    return core_->forget(stack::capture_from_caller(core_->free_frames));
}

void tracking_resource_base::rebind_thread() noexcept {
    core_->thread.release();
}

}  // namespace pmr_debug
