#include <pmr_debug/logging_resource.hpp>

#include "os/output.hpp"
#include "os/thread.hpp"
#include "report/wording.hpp"
#include "report/writer.hpp"
#include "resources/pass_through.hpp"
#include "stack/capture.hpp"

namespace pmr_debug {

namespace {

constexpr const char* type_name = "logging_resource";
constexpr int standard_error = 2;
// A name of 63 characters, each escaped, and four numbers.
constexpr std::size_t longest_line = 640;

struct logging_core : detail::pass_through_core {
    text_sink sink = nullptr;
    void* context = nullptr;
};

logging_core& of(detail::pass_through_core* core) noexcept {
    return *static_cast<logging_core*>(core);
}

void to_standard_error(std::string_view text, void* /*context*/) noexcept {
    os::write_all(standard_error, text.data(), text.size());
}

// Null: the request failed.
void log(const logging_core& core, std::string_view call, const void* p, std::size_t bytes,
         std::size_t alignment) noexcept {
    detail::fixed_text<longest_line> line;
    {
        detail::writer out(&line.sink, &line);
        detail::write_short_name(out, metadata::describe(core.self));
        out.text(": ").text(call).put(' ');
        if (p != nullptr) {
            out.address(p);
        } else {
            out.text("failed");
        }
        out.text(", ").count(bytes, "byte").text(", alignment ").number(alignment);
        out.text(", thread ").number(os::this_thread().number).put('\n');
    }
    core.sink(line.view(), core.context);
}

}  // namespace

logging_resource::logging_resource(const logging_options& o) : logging_resource(std::pmr::new_delete_resource(), o) {}

logging_resource::logging_resource(detail::upstream_argument upstream, const logging_options& o) {
    const trace_id born = stack::capture_from_caller(detail::pass_through_frames);
    auto* const core =
        detail::pass_through_core::make<logging_core>(upstream.get(), type_name, o.name, o.handler, born);
    core->sink = o.sink != nullptr ? o.sink : to_standard_error;
    core->context = o.context;
    core_ = core;
    core->enlist(type_name, o.name, this, born);
}

void* logging_resource::do_allocate(std::size_t bytes, std::size_t alignment) {
    logging_core& core = of(core_);
    void* p = nullptr;
    try {
        core.check_request(bytes, alignment);
        p = core.ask(bytes, alignment);
    } catch (...) {
        log(core, "allocate", nullptr, bytes, alignment);
        throw;
    }
    core.usage.add<true>(bytes);
    log(core, "allocate", p, bytes, alignment);
    return p;
}

void logging_resource::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    logging_core& core = of(core_);
    if (core.check_free(p, bytes, alignment)) {
        log(core, "deallocate", p, bytes, alignment);
        core.give_back(p, bytes, alignment);
    }
}

}  // namespace pmr_debug
