#include "resources/pass_through.hpp"

#include "report/comparison.hpp"
#include "resources/block_reports.hpp"
#include "resources/chain_check.hpp"
#include "resources/upstream.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <bit>
#include <cstdint>

namespace pmr_debug::detail {

void pass_through_core::complain(error_kind kind, const void* p, std::size_t bytes, std::size_t alignment) noexcept {
    report r;
    r.kind = kind;
    r.resource = metadata::describe(self);
    r.pointer = p;
    r.has_given = true;
    r.given_size = bytes;
    r.given_alignment = alignment;
    raise(errors, r);
}

void pass_through_core::check_request(std::size_t bytes, std::size_t alignment) {
    const bool possible = std::has_single_bit(alignment);
    if (possible && bytes <= SIZE_MAX / 2 && alignment <= SIZE_MAX / 2 - bytes) [[likely]] {
        return;
    }
    usage.fail();
    if (!possible) {
        complain(error_kind::bad_alignment, nullptr, bytes, alignment);
    }
    throw std::bad_alloc();
}

void* pass_through_core::ask(std::size_t bytes, std::size_t alignment) {
    std::pmr::memory_resource& below = *upstream.load(std::memory_order_acquire);
    void* p = nullptr;
    try {
        p = ask_upstream(below, bytes, alignment);
    } catch (...) {
        usage.fail();
        throw;
    }
    if (p != nullptr && (reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) == 0) [[likely]] {
        return p;
    }
    usage.fail();
    complain(p == nullptr ? error_kind::upstream_null : error_kind::upstream_misaligned, p, bytes, alignment);
    if (p != nullptr) {
        below.deallocate(p, bytes, alignment);
    }
    throw std::bad_alloc();
}

bool pass_through_core::check_free(const void* p, std::size_t bytes, std::size_t alignment) noexcept {
    if (p != nullptr) [[likely]] {
        return true;
    }
    complain(error_kind::null_free, nullptr, bytes, alignment);
    return false;
}

void pass_through_core::give_back(void* p, std::size_t bytes, std::size_t alignment) {
    usage.remove_at_most(bytes);
    upstream.load(std::memory_order_acquire)->deallocate(p, bytes, alignment);
}

void pass_through_core::enlist(const char* type, std::string_view name, const std::pmr::memory_resource* owner,
                               trace_id born) noexcept {
    self = metadata::register_resource(metadata::resource_kind::other, type, name, owner,
                                       upstream.load(std::memory_order_relaxed), this, born, nullptr,
                                       stats_by_address<pass_through_base>);
    metadata::set_fork(self, [](void* c, os::fork_locks& locks) noexcept {
        auto& mine = *static_cast<pass_through_core*>(c);
        if (mine.hold_own != nullptr) {
            mine.hold_own(mine, locks);
        }
        mine.usage.hold(locks);
    });
    report_cycle(self, errors);
}

void pass_through_core::destroy(trace_id died) noexcept {
    metadata::unregister_resource(self, died);
    metadata::process_arena()->free(this, core_bytes);
}

pass_through_base::~pass_through_base() {
    if (core_ != nullptr) {
        core_->destroy(capture_trace(pass_through_frames));
    }
}

void* pass_through_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    report_destroyed(this, "memory_resource", nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void pass_through_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    report_destroyed(this, "memory_resource", p, bytes, alignment);
}

bool pass_through_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return is_same(this, other);
}

std::pmr::memory_resource* pass_through_base::upstream_resource() const noexcept {
    return core_->upstream.load(std::memory_order_acquire);
}

std::string_view pass_through_base::name() const noexcept {
    return metadata::describe(core_->self).name;
}

statistics pass_through_base::stats() const noexcept {
    statistics s = core_->usage.snapshot();
    s.upstream_bytes = s.live_bytes;
    s.overhead_bytes = core_->core_bytes;
    return s;
}

std::size_t pass_through_base::before_upstream_release() noexcept {
    return core_->usage.remove_all();
}

error_counts pass_through_base::errors() const noexcept {
    return snapshot(core_->errors);
}

bool pass_through_base::ok() const noexcept {
    return detail::ok(core_->errors);
}

}  // namespace pmr_debug::detail
