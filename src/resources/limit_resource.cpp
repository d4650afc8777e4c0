#include <pmr_debug/limit_resource.hpp>

#include "resources/pass_through.hpp"
#include "stack/capture.hpp"

#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "limit_resource";

struct limit_core : detail::pass_through_core {
    std::size_t limit_bytes = 0;
    std::size_t limit_blocks = 0;
};

limit_core& of(detail::pass_through_core* core) noexcept {
    return *static_cast<limit_core*>(core);
}

}  // namespace

limit_resource::limit_resource(const limit_options& o) : limit_resource(std::pmr::new_delete_resource(), o) {}

limit_resource::limit_resource(detail::upstream_argument upstream, const limit_options& o) {
    const trace_id born = stack::capture_from_caller(detail::pass_through_frames);
    auto* const core = detail::pass_through_core::make<limit_core>(upstream.get(), type_name, o.name, o.handler, born);
    core->limit_bytes = o.limit_bytes;
    core->limit_blocks = o.limit_blocks;
    core_ = core;
    core->enlist(type_name, o.name, this, born);
}

std::size_t limit_resource::limit_bytes() const noexcept {
    return of(core_).limit_bytes;
}

std::size_t limit_resource::limit_blocks() const noexcept {
    return of(core_).limit_blocks;
}

void* limit_resource::do_allocate(std::size_t bytes, std::size_t alignment) {
    limit_core& core = of(core_);
    core.check_request(bytes, alignment);
    const detail::usage_counters::verdict v = core.usage.reserve<true>(bytes, core.limit_bytes, core.limit_blocks);
    if (!v.allowed) {
        core.usage.fail();
        report r;
        r.kind = error_kind::limit_exceeded;
        r.resource = metadata::describe(core.self);
        r.has_given = true;
        r.given_size = bytes;
        r.given_alignment = alignment;
        r.limit = v.limit;
        r.in_use = v.in_use;
        raise(core.errors, r);
        throw std::bad_alloc();
    }
    void* p = nullptr;
    try {
        p = core.ask(bytes, alignment);
    } catch (...) {
        core.usage.abandon(bytes);
        throw;
    }
    core.usage.settle<true>(bytes);
    return p;
}

void limit_resource::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    if (core_->check_free(p, bytes, alignment)) {
        core_->give_back(p, bytes, alignment);
    }
}

}  // namespace pmr_debug
