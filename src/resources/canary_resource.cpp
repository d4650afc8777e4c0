#include <pmr_debug/canary_resource.hpp>

#include "report/comparison.hpp"
#include "resources/canary_core.hpp"
#include "stack/capture.hpp"

#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "canary_resource";
// Of births and deaths.
constexpr unsigned rare_frames = 16;

}  // namespace

canary_resource_base::canary_resource_base(std::pmr::memory_resource* upstream, const canary_options& o,
                                           const policy& p)
    : core_(nullptr) {
    const trace_id born = stack::capture_from_caller(rare_frames);
    if (upstream == nullptr) {
        detail::null_upstream(type_name, o.name, born);
    }
    core_ = detail::canary_core::make(upstream, o, p, this, born);
}

canary_resource_base::~canary_resource_base() {
    if (core_->shape.checks) {
        core_->check();
        core_->reports().leaks();
        core_->reports().leave_blocks();
        core_->drain();
    }
    metadata::unregister_resource(core_->self, stack::capture_from_caller(rare_frames));
    detail::take_core(core_, this)->destroy();
}

void* canary_resource_base::do_allocate(std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, nullptr, bytes, alignment);
    throw std::bad_alloc();
}

void canary_resource_base::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    detail::report_destroyed(this, type_name, p, bytes, alignment);
}

bool canary_resource_base::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return detail::is_same(this, other);
}

std::pmr::memory_resource* canary_resource_base::upstream_resource() const noexcept {
    return core_->given;
}

std::string_view canary_resource_base::name() const noexcept {
    return metadata::describe(core_->self).name;
}

statistics canary_resource_base::stats() const noexcept {
    if (core_ == nullptr) {
        return {};
    }
    statistics s = core_->usage.snapshot();
    const quarantine_statistics waiting = quarantine();
    s.upstream_bytes = core_->held.load(std::memory_order_relaxed);
    s.resident_bytes = s.upstream_bytes;
    s.overhead_bytes = core_->memory.used() + sizeof(detail::canary_core);
    s.retired_units = waiting.blocks + waiting.damaged_blocks;
    s.quarantined_bytes = waiting.bytes;
    s.quarantine_limit = core_->quarantine.allowed();
    return s;
}

quarantine_statistics canary_resource_base::quarantine() const noexcept {
    return core_->quarantine.totals();
}

error_counts canary_resource_base::errors() const noexcept {
    return detail::snapshot(core_->errors);
}

bool canary_resource_base::ok() const noexcept {
    return detail::ok(core_->errors);
}

std::size_t canary_resource_base::check() noexcept {
    return core_->check();
}

std::size_t canary_resource_base::report_leaks() noexcept {
    return core_->shape.checks ? core_->reports().leaks() : 0;
}

std::size_t canary_resource_base::before_upstream_release() noexcept {
    return core_->forget(stack::capture_from_caller(core_->free_frames));
}

void canary_resource_base::rebind_thread() noexcept {
    core_->thread.release();
}

}  // namespace pmr_debug
