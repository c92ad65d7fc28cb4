// Runs an exported network on one input, without Python: infer LIBONNXRUNTIME MODEL.onnx INPUT.f32 N C H W > OUTPUT.f32
//
// The wheel of ONNX Runtime holds its library, but no headers. Its C interface is one function, OrtGetApiBase, which
// hands out a table of function pointers; entries are only ever added at the end, and those of the first version are
// where they were in 2019. So the few that are needed are declared here, by their place in the table. With headers
// installed, a program of your own includes <onnxruntime_cxx_api.h> instead.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

struct ApiBase {
    void* const* (*table)(std::uint32_t version);
    const char* (*version)();
};

enum Place {
    kErrorMessage = 2,
    kCreateEnv = 3,
    kCreateSession = 7,
    kRun = 9,
    kCreateSessionOptions = 10,
    kCreateTensorWithData = 49,
    kTensorData = 51,
    kElementCount = 64,
    kTensorShape = 65,
    kCreateCpuMemoryInfo = 69,
};

constexpr std::uint32_t kVersion = 1;
constexpr int kWarning = 2, kDeviceAllocator = 0, kDefaultMemory = 0, kFloat = 1;

void* const* api;

[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr, "infer: %s\n", why.c_str());
    std::exit(1);
}

// Calls the entry at a place of the table; every one used here returns a status, which is null where all went well.
template <typename... Args>
void call(Place place, Args... args) {
    void* status = reinterpret_cast<void* (*)(Args...)>(api[place])(args...);
    if (status != nullptr) fail(reinterpret_cast<const char* (*)(void*)>(api[kErrorMessage])(status));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 5) fail("expected LIBONNXRUNTIME MODEL.onnx INPUT.f32 SIZE...");
    void* library = dlopen(argv[1], RTLD_NOW);
    if (library == nullptr) fail(dlerror());
    auto base = reinterpret_cast<const ApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
    if (base == nullptr) fail(dlerror());
    api = base()->table(kVersion);
    std::fprintf(stderr, "ONNX Runtime %s\n", base()->version());

    std::vector<std::int64_t> shape;
    std::size_t count = 1;
    for (int i = 4; i < argc; ++i) shape.push_back(std::atoll(argv[i])), count *= shape.back();
    std::vector<float> input(count);
    std::ifstream file(argv[3], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(input.data()), count * sizeof(float))) fail("the input is too short");

    void *env, *options, *session, *memory, *tensor, *output = nullptr, *info;
    call(kCreateEnv, kWarning, "infer", &env);
    call(kCreateSessionOptions, &options);
    call(kCreateSession, env, static_cast<const char*>(argv[2]), options, &session);
    call(kCreateCpuMemoryInfo, kDeviceAllocator, kDefaultMemory, &memory);
    call(kCreateTensorWithData, memory, static_cast<void*>(input.data()), count * sizeof(float),
         static_cast<const std::int64_t*>(shape.data()), shape.size(), kFloat, &tensor);

    const char *input_name = "input", *output_name = "output";
    call(kRun, session, static_cast<void*>(nullptr), &input_name, static_cast<void* const*>(&tensor), std::size_t{1},
         &output_name, std::size_t{1}, &output);

    float* values;
    std::size_t length;
    call(kTensorData, output, reinterpret_cast<void**>(&values));
    call(kTensorShape, output, &info);
    call(kElementCount, info, &length);
    return std::fwrite(values, sizeof(float), length, stdout) == length ? 0 : 1;
}
