// The 3D view: points, cameras, ways to move, choosing a camera, measuring. It draws only when something changes.

const MOST_WHILE_MOVING = 2e6; // points; all of them are drawn as soon as the view rests
const CLICK_PIXELS = 5; // a pointer that moved less between down and up has clicked
const PICK_PIXELS = 14; // how far beside a click a point may be

class Viewer {
  // callbacks: chosen(index or null), drawn(count), measured(distance or null), walking(bool)
  constructor(holder, report, callbacks) {
    this.holder = holder;
    this.report = report;
    this.callbacks = callbacks;
    this.chunks = [];
    this.placed = report.views.filter((view) => view.camera);
    this.chosen = null;
    this.measuring = false;
    this.ends = [];
    this.renderer = new THREE.WebGLRenderer({ antialias: true, powerPreference: "high-performance" });
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.canvas = this.renderer.domElement;
    holder.prepend(this.canvas);
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(50, 1, 0.01, 1000);
    this.uniforms = { threshold: { value: 0 }, size: { value: 1 }, pixels: { value: 1 } };
    this.orbit = new THREE.OrbitControls(this.camera, this.canvas);
    this.orbit.enableDamping = true;
    this.orbit.dampingFactor = 0.12;
    this.orbit.addEventListener("change", () => this.redraw());
    this.walk = new WalkControls(this.camera, this.canvas, () => this.redraw());
    this.addCameras();
    this.addPointer();
    this.setBounds();
    this.reset();
    new ResizeObserver(() => this.resize()).observe(holder);
    this.resize();
    this.canvas.addEventListener("webglcontextrestored", () => this.redraw());
  }

  // ------------------------------------------------------------------ content
  addChunk(described, buffer) {
    const chunk = new PointChunk(described, buffer, this.uniforms);
    this.chunks.push(chunk);
    this.scene.add(chunk.object);
    this.countPoints();
    this.redraw();
  }

  // The middle and the radius of what there is to see, by the boxes of the chunks and the cameras.
  setBounds(chunks = []) {
    const corners = this.placed.map((view) => new THREE.Vector3(...view.camera.centre));
    for (const chunk of chunks.filter((one) => one.count)) {
      for (const share of [0.1, 0.9]) {
        corners.push(new THREE.Vector3(...chunk.offset.map((low, k) => low + share * 65535 * chunk.scale[k])));
      }
    }
    const box = new THREE.Box3().setFromPoints(corners.length ? corners : [new THREE.Vector3()]);
    this.middle = box.getCenter(new THREE.Vector3());
    this.radius = Math.max(box.getSize(new THREE.Vector3()).length() / 2, 1e-3);
    this.walk.speed = 0.25 * this.radius;
    this.camera.near = this.radius / 500;
    this.camera.far = this.radius * 60;
    this.camera.updateProjectionMatrix();
  }

  addCameras() {
    const size = this.report.camera_size || 0.1;
    const wires = [], faces = [];
    for (const { camera } of this.placed) {
      // the base has the height `size`, but lies no nearer than a tenth of it
      const depth = Math.max(size / 10, size / camera.height_at_1);
      const apex = new THREE.Vector3(...camera.centre);
      const base = camera.corners.map((corner) => new THREE.Vector3(...corner).multiplyScalar(depth).add(apex));
      camera.base = base;
      const top = base[0].clone().add(base[1]).multiplyScalar(0.5);
      const up = new THREE.Vector3(...camera.down).multiplyScalar(-0.25 * size).add(top);
      const edge = (a, b) => wires.push(...a.toArray(), ...b.toArray());
      for (let k = 0; k < 4; k++) {
        edge(apex, base[k]);
        edge(base[k], base[(k + 1) % 4]);
        faces.push(...apex.toArray(), ...base[k].toArray(), ...base[(k + 1) % 4].toArray());
      }
      edge(base[0], up); // a roof on the side of the photo's top
      edge(up, base[1]);
      faces.push(...[base[0], base[1], base[2], base[0], base[2], base[3]].flatMap((corner) => corner.toArray()));
    }
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.Float32BufferAttribute(wires, 3));
    geometry.setAttribute("color", new THREE.Float32BufferAttribute(new Float32Array(wires.length), 3));
    this.wires = new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({ vertexColors: true }));
    this.scene.add(this.wires);
    // what a click hits; it is never drawn
    const solid = new THREE.BufferGeometry();
    solid.setAttribute("position", new THREE.Float32BufferAttribute(faces, 3));
    this.solid = new THREE.Mesh(solid, new THREE.MeshBasicMaterial({ side: THREE.DoubleSide }));
    this.picture = new THREE.Mesh(new THREE.BufferGeometry(), new THREE.MeshBasicMaterial({ side: THREE.DoubleSide }));
    this.picture.geometry.setAttribute("uv", new THREE.Float32BufferAttribute([0, 1, 1, 1, 1, 0, 0, 0], 2));
    this.picture.geometry.setIndex([0, 1, 2, 0, 2, 3]);
    this.pictureOf = null; // the view whose photo it shows
    this.picture.frustumCulled = false;
    this.scene.add(this.picture);
    this.camerasShown = true;
  }

  // Colours that follow the page's: {background, camera, doubtful, chosen} as CSS colours.
  setColours(colours) {
    this.colours = colours;
    this.scene.background = new THREE.Color(colours.background);
    this.paintWires();
  }

  paintWires() {
    const values = this.wires.geometry.getAttribute("color");
    const each = 20; // ends of the ten edges of a camera
    this.placed.forEach((view, number) => {
      const name = view === this.chosen ? "chosen" : isDoubtful(view) ? "doubtful" : "camera";
      const { r, g, b } = new THREE.Color(this.colours[name]);
      for (let k = 0; k < each; k++) values.setXYZ(each * number + k, r, g, b);
    });
    values.needsUpdate = true;
    this.redraw();
  }

  // ------------------------------------------------------------------ settings
  setThreshold(level) {
    this.uniforms.threshold.value = level;
    this.countPoints();
    this.redraw();
  }

  setSize(size) {
    this.uniforms.size.value = size;
    this.redraw();
  }

  showCameras(shown) {
    this.camerasShown = shown;
    this.redraw();
  }

  countPoints() {
    let count = 0;
    for (const { histogram } of this.chunks) {
      for (let level = Math.ceil(this.uniforms.threshold.value); level < 256; level++) count += histogram[level];
    }
    this.numDrawn = count;
    this.callbacks.drawn(count);
  }

  // ------------------------------------------------------------------ moving
  // From behind and above the cameras, so that they and what they see are in the picture.
  reset() {
    this.setWalking(false);
    this.choose(null);
    this.clearMeasure();
    const back = new THREE.Vector3();
    for (const { camera } of this.placed) back.sub(new THREE.Vector3(...camera.forward));
    back.y = 0;
    if (back.length() < 0.2 * this.placed.length || !this.placed.length) back.set(0, 0, 1);
    back.normalize().setY(0.45).normalize();
    this.camera.fov = 50;
    const half = THREE.MathUtils.degToRad(this.camera.fov / 2);
    const narrow = Math.min(1, this.camera.aspect);
    this.orbit.enableDamping = false; // a turn that has not faded away ends here
    this.orbit.update();
    this.orbit.enableDamping = true;
    this.orbit.target.copy(this.middle);
    this.camera.position.copy(this.middle).addScaledVector(back, (narrow < 1 ? 0.8 : 0.62) * this.radius / Math.tan(half) / narrow);
    this.camera.up.set(0, 1, 0);
    this.camera.updateProjectionMatrix();
    this.orbit.update();
    this.redraw();
  }

  setWalking(walking) {
    if (this.walk.enabled === walking) return;
    this.walk.enabled = walking;
    this.walk.flight = null;
    this.walk.held.clear();
    this.orbit.enabled = !walking;
    if (walking) {
      if (this.placed.length) this.standAt(this.chosen || this.placed[0]);
    } else {
      // turn around what lies ahead
      const ahead = new THREE.Vector3(0, 0, -1).applyQuaternion(this.camera.quaternion);
      const away = Math.max(0.2 * this.radius, this.camera.position.distanceTo(this.middle));
      this.orbit.target.copy(this.camera.position).addScaledVector(ahead, away);
      this.camera.fov = 50;
      this.camera.updateProjectionMatrix();
      this.orbit.update();
    }
    this.callbacks.walking(walking);
    this.redraw();
  }

  // Flies to where a photo was taken, with its angle of view.
  standAt(view) {
    const { centre, right, down, forward, height_at_1: height, width_at_1: width } = view.camera;
    const axes = [right, down.map((x) => -x), forward.map((x) => -x)].map((axis) => new THREE.Vector3(...axis));
    const wanted = Math.max(height, width / this.camera.aspect);
    if (!this.walk.enabled) this.setWalking(true);
    this.choose(view);
    this.walk.fly({
      position: new THREE.Vector3(...centre),
      quaternion: new THREE.Quaternion().setFromRotationMatrix(new THREE.Matrix4().makeBasis(...axes)),
      fov: THREE.MathUtils.clamp(2 * THREE.MathUtils.radToDeg(Math.atan(wanted / 2)), 10, 120),
    });
  }

  step(by) {
    if (!this.placed.length) return;
    const now = this.placed.indexOf(this.chosen);
    const next = this.placed[(Math.max(now, by > 0 ? -1 : 0) + by + this.placed.length) % this.placed.length];
    if (this.walk.enabled) this.standAt(next);
    else this.choose(next);
  }

  // ------------------------------------------------------------------ choosing and measuring
  choose(view) {
    if (view === this.chosen) return;
    this.chosen = view;
    if (this.colours) this.paintWires();
    this.callbacks.chosen(view);
    const address = view && view.camera && this.callbacks.photo(view);
    if (!address) return this.redraw();
    new THREE.TextureLoader().load(address, (texture) => {
      if (this.chosen !== view) return texture.dispose();
      texture.colorSpace = THREE.SRGBColorSpace;
      const material = this.picture.material;
      if (material.map) material.map.dispose();
      material.map = texture;
      material.needsUpdate = true;
      const corners = view.camera.base.flatMap((corner) => corner.toArray());
      this.picture.geometry.setAttribute("position", new THREE.Float32BufferAttribute(corners, 3));
      this.pictureOf = view;
      this.redraw();
    });
  }

  setMeasuring(measuring) {
    this.measuring = measuring;
    if (!measuring) this.clearMeasure();
  }

  clearMeasure() {
    this.ends = [];
    this.showMeasure();
  }

  // The point of the scene at (x, y) pixels of the view, or null.
  pick(x, y) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const { threshold, size, pixels } = this.uniforms;
    const ratio = this.renderer.getPixelRatio();
    this.camera.updateMatrixWorld();
    const near = [];
    for (const chunk of this.chunks) {
      const found = chunk.near(
        this.camera, x, y, width, height, threshold.value, size.value, pixels.value / ratio, PICK_PIXELS);
      for (const one of found) near.push({ ...one, chunk });
    }
    // of those that cover the place the foremost surface, and of this the point nearest to the place
    const under = near.filter((one) => one.under);
    const front = under.reduce((least, one) => Math.min(least, one.depth), Infinity);
    const surface = under.length ? under.filter((one) => one.depth <= 1.02 * front) : near;
    const best = surface.reduce((one, other) => (one && one.away <= other.away ? one : other), null);
    return best && best.chunk.position(best.k);
  }

  measureAt(x, y) {
    const point = this.pick(x, y);
    if (!point) return false;
    this.ends = this.ends.length === 1 ? [this.ends[0], point] : [point];
    this.showMeasure();
    return true;
  }

  showMeasure() {
    this.distance = this.ends.length === 2 ? this.ends[0].distanceTo(this.ends[1]) : null;
    this.callbacks.measured(this.distance, this.ends.length);
    this.redraw();
  }

  // Where the measured points are in the view, in pixels; none if one is behind the camera.
  endsInView() {
    const places = this.ends.map((end) => end.clone().project(this.camera));
    return places.every((place) => place.z < 1) ? places.map((place) => this.toPixels(place)) : [];
  }

  toPixels({ x, y }) {
    return [(x * 0.5 + 0.5) * this.canvas.clientWidth, (0.5 - y * 0.5) * this.canvas.clientHeight];
  }

  // Where a point of the scene is in the view, in pixels.
  pixelOf(point) {
    this.camera.updateMatrixWorld();
    return this.toPixels(point.clone().project(this.camera));
  }

  addPointer() {
    let down = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      down = event.isPrimary && event.button === 0 ? [event.clientX, event.clientY] : null;
      this.holder.focus({ preventScroll: true });
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (!down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > CLICK_PIXELS) return;
      const [x, y] = this.inView(event);
      if (this.measuring) this.measureAt(x, y);
      else if (this.camerasShown && !this.walk.enabled) this.choose(this.cameraAt(x, y));
    });
    this.canvas.addEventListener("dblclick", (event) => {
      const point = !this.measuring && !this.walk.enabled && this.pick(...this.inView(event));
      if (!point) return;
      this.orbit.target.copy(point);
      this.orbit.update();
      this.redraw();
    });
  }

  inView(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // The view whose camera is drawn at (x, y) pixels, or null.
  cameraAt(x, y) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ray = new THREE.Raycaster();
    this.camera.updateMatrixWorld();
    ray.setFromCamera(new THREE.Vector2((x / width) * 2 - 1, 1 - (y / height) * 2), this.camera);
    const [hit] = ray.intersectObject(this.solid);
    return hit ? this.placed[Math.floor(hit.faceIndex / 6)] : null;
  }

  // ------------------------------------------------------------------ drawing
  resize() {
    const { clientWidth: width, clientHeight: height } = this.holder;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.waiting = false;
    const moving = this.walk.advance((now - (this.last || now)) / 1000);
    const turning = this.orbit.enabled && this.orbit.update();
    this.last = moving || turning ? now : null;
    const all = this.chunks.reduce((sum, chunk) => sum + chunk.count, 0);
    const thin = all > MOST_WHILE_MOVING;
    if (thin && (moving || turning)) this.restAt = now + 150;
    const share = thin && now < this.restAt ? MOST_WHILE_MOVING / all : 1;
    for (const chunk of this.chunks) chunk.setShare(share);
    const half = THREE.MathUtils.degToRad(this.camera.fov / 2);
    this.uniforms.pixels.value = this.renderer.domElement.height / (2 * Math.tan(half));
    this.wires.visible = this.camerasShown && !this.walk.enabled;
    this.picture.visible = this.wires.visible && this.pictureOf !== null && this.pictureOf === this.chosen;
    this.renderer.render(this.scene, this.camera);
    if (this.callbacks.framed) this.callbacks.framed();
    if (moving || turning || share < 1) this.redraw();
  }
}

function isDoubtful(view) {
  return Boolean(view.doubt) || (view.verdict && view.verdict.level !== "good");
}
